"""Image i is the same request in any division into shards."""

import numpy as np
import pytest

from dpar.errors import InputError
from dpar.sampling.request import request


@pytest.mark.parametrize("labels", ["balanced", "uniform"])
def test_shards_are_a_division_of_the_whole(labels):
    settings = {"num_images": 103, "num_classes": 7, "labels": labels, "seed": 3}
    whole = request(**settings)
    parts = [request(**settings, shard=shard, shards=4) for shard in range(4)]
    for name in ("images", "labels", "seeds"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(set(whole.seeds.tolist())) == 103


def test_balanced_and_uniform_labels():
    balanced = request(num_images=50, num_classes=10, labels="balanced", seed=0)
    assert (np.bincount(balanced.labels) == 5).all()
    uniform = request(num_images=20_000, num_classes=10, labels="uniform", seed=0)
    assert np.abs(np.bincount(uniform.labels, minlength=10) / 20_000 - 0.1).max() < 0.01
    other = request(num_images=20_000, num_classes=10, labels="uniform", seed=1)
    assert not np.array_equal(uniform.labels, other.labels)


def test_shards_that_do_not_exist_or_are_empty():
    settings = {"num_images": 2, "num_classes": 2, "labels": "balanced", "seed": 0}
    with pytest.raises(InputError, match="shard 3 does not exist"):
        request(**settings, shard=3, shards=3)
    with pytest.raises(InputError, match="is empty"):
        request(**settings, shard=0, shards=5)
