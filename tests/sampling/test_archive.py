"""Samples on disk: whole or absent, in blocks, readable by what reads ADM's files."""

import numpy as np
import pytest

from dpar.evaluation.features import ImageArray
from dpar.sampling.archive import Parts, write_samples
from dpar.sampling.drawing import Drawn

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)


def test_blocks_become_one_array(tmp_path):
    path = tmp_path / "a.npz"
    labels = np.arange(7, dtype=np.int32)
    write_samples(path, np.split(IMAGES, [3, 5]), IMAGES.shape, {"labels": labels}, {"seed": 3})
    with np.load(path) as stored:
        assert np.array_equal(stored["arr_0"], IMAGES)
        assert np.array_equal(stored["labels"], labels)
        assert str(stored["conditions"]) == '{"seed": 3}'
    read = ImageArray.open(path)
    blocks = [block.permute(0, 2, 3, 1).numpy() for block in read.batches(2)]
    assert np.array_equal(np.concatenate(blocks), IMAGES)
    assert np.array_equal(read.arrays["labels"], labels)


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path):
    def dying():
        yield IMAGES[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "a.npz", dying(), IMAGES.shape, {}, {})
    assert not list(tmp_path.iterdir())


def test_a_part_behind_one_that_was_not_written_is_drawn_again(tmp_path):
    output = tmp_path / "00000.npz"
    parts = Parts(output, "one")
    for start, stop in ((0, 2), (4, 6)):
        parts.add(Drawn(start, IMAGES[start:stop], np.arange(start, stop)))
    again = Parts(output, "one")
    assert again.done == 2
    for start, stop in ((2, 5), (5, 7)):  # in other pieces than before
        again.add(Drawn(start, IMAGES[start:stop], np.arange(start, stop)))
    assert np.array_equal(np.concatenate([part.images for part in Parts(output, "one")]), IMAGES)


def test_parts_come_back_in_order_and_only_to_their_own_identity(tmp_path):
    output = tmp_path / "00000.npz"
    parts = Parts(output, "one")
    assert parts.done == 0
    for start, stop in ((0, 4), (4, 7)):
        parts.add(Drawn(start, IMAGES[start:stop], np.arange(start, stop)))
    again = Parts(output, "one")
    assert again.done == 7
    assert np.array_equal(np.concatenate([part.images for part in again]), IMAGES)
    assert np.concatenate([part.patches for part in again]).tolist() == list(range(7))
    assert Parts(tmp_path / "00001.npz", "two").done == 0
    assert again.done == 7, "another shard's parts were taken for old ones"
    assert Parts(output, "two").done == 0
    assert again.done == 0
    assert not list(tmp_path.iterdir())
