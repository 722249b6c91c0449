"""Parts of a pass: found again by the same work alone, in order, without what lies behind a gap."""

import numpy as np

from dpar.data.parts import Parts

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)


def test_a_part_behind_one_that_was_not_written_is_drawn_again(tmp_path):
    output = tmp_path / "00000.npz"
    parts = Parts(output, "one")
    for start, stop in ((0, 2), (4, 6)):
        parts.add(range(start, stop), images=IMAGES[start:stop], patches=np.arange(start, stop))
    again = Parts(output, "one")
    assert again.resume() == 2
    for start, stop in ((2, 5), (5, 7)):  # in other pieces than before
        again.add(range(start, stop), images=IMAGES[start:stop], patches=np.arange(start, stop))
    assert np.array_equal(np.concatenate([arrays["images"] for _, arrays in Parts(output, "one")]), IMAGES)


def test_parts_come_back_in_order_and_only_to_their_own_identity(tmp_path):
    output = tmp_path / "00000.npz"
    parts = Parts(output, "one")
    assert parts.resume() == 0
    for start, stop in ((0, 4), (4, 7)):
        parts.add(range(start, stop), images=IMAGES[start:stop], patches=np.arange(start, stop))
    again = Parts(output, "one")
    assert again.resume() == 7
    assert np.array_equal(np.concatenate([arrays["images"] for _, arrays in again]), IMAGES)
    assert np.concatenate([arrays["patches"] for _, arrays in again]).tolist() == list(range(7))
    assert Parts(tmp_path / "00001.npz", "two").resume() == 0
    assert again.resume() == 7, "another shard's parts were taken for old ones"
    assert Parts(output, "two").resume() == 0
    assert again.resume() == 0
    assert not list(tmp_path.iterdir())


def test_parts_of_several_processes_may_come_in_any_order(tmp_path):
    parts, other = Parts(tmp_path / "a.npz", "one"), Parts(tmp_path / "a.npz", "one")
    other.add(range(4, 7), output0=IMAGES[4:])
    parts.add(range(4), output0=IMAGES[:4])
    assert parts.spans == other.spans == [range(4), range(4, 7)]
    assert np.array_equal(parts.load(range(4, 7))["output0"], IMAGES[4:])
    parts.remove()
    assert (other.spans, other.resume()) == ([], 0)
