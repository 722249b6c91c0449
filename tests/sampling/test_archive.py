"""Samples on disk: whole or absent, in blocks, readable by what reads ADM's files."""

import numpy as np
import pytest

from dpar.data.parts import Parts
from dpar.evaluation.features import ImageArray
from dpar.sampling.archive import keep, kept, write_samples
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


def test_batches_come_back_as_they_were_kept(tmp_path):
    parts = Parts(tmp_path / "00000.npz", "one")
    for start, stop in ((4, 7), (0, 4)):
        keep(parts, Drawn(start, IMAGES[start:stop], np.arange(start, stop)))
    found = list(kept(parts))
    assert [(batch.start, batch.stop) for batch in found] == [(0, 4), (4, 7)]
    assert np.array_equal(np.concatenate([batch.images for batch in found]), IMAGES)
    assert np.concatenate([batch.patches for batch in found]).tolist() == list(range(7))
