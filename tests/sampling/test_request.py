"""Image i is the same request in any division into shards."""

import numpy as np
import pytest
import torch

from dpar.errors import InputError
from dpar.sampling.request import Request, in_proportion, request

COUNTS = np.array([50, 0, 25, 12, 7, 5, 1])


@pytest.mark.parametrize("labels", ["balanced", "uniform", "training"])
@pytest.mark.parametrize(
    ("batch_size", "lengths"),
    [
        (1, [25, 26, 26, 26]),
        (10, [20, 30, 30, 23]),
        (34, [34, 34, 34, 1]),
        (35, [25, 26, 26, 26]),
    ],
)
def test_shards_are_a_division_of_the_whole(labels, batch_size, lengths):
    """Of whole batches where every shard can have one, else of images."""
    settings = {"num_images": 103, "num_classes": 7, "labels": labels, "seed": 3, "batch_size": batch_size}
    settings["counts"] = COUNTS
    whole = request(**settings)
    parts = [request(**settings, shard=shard, shards=4) for shard in range(4)]
    for name in ("images", "labels", "seeds"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert list(map(len, parts)) == lengths
    assert len(set(whole.seeds.tolist())) == 103


def test_a_set_has_as_many_batches_as_it_would_have_in_one_shard():
    """What ImageNet's experiment draws: 196 batches of 256, and at most 13 a job."""
    settings = {"num_images": 50_000, "num_classes": 1000, "labels": "balanced", "seed": 0, "batch_size": 256}
    batches = [-(-len(request(**settings, shard=shard, shards=16)) // 256) for shard in range(16)]
    assert sum(batches) == 196
    assert max(batches) == 13


def test_balanced_and_uniform_labels():
    balanced = request(num_images=50, num_classes=10, labels="balanced", seed=0, batch_size=8)
    assert (np.bincount(balanced.labels) == 5).all()
    uniform = request(num_images=20_000, num_classes=10, labels="uniform", seed=0, batch_size=8)
    assert np.abs(np.bincount(uniform.labels, minlength=10) / 20_000 - 0.1).max() < 0.01
    other = request(num_images=20_000, num_classes=10, labels="uniform", seed=1, batch_size=8)
    assert not np.array_equal(uniform.labels, other.labels)


def test_labels_in_the_shares_of_the_training_images():
    """To the nearest whole image, and so in every part of the set that is shown, or drawn by one job."""
    labels = in_proportion(200, COUNTS)
    assert np.bincount(labels, minlength=7).tolist() == (2 * COUNTS).tolist()
    for count in (20, 50, 120):
        assert np.abs(np.bincount(labels[:count], minlength=7) - COUNTS * count / 100).max() <= 1
    for count in range(1, 30):
        found = np.bincount(in_proportion(count, COUNTS), minlength=7)
        assert found.sum() == count
        assert np.abs(found - COUNTS * count / 100).max() < 1
    assert in_proportion(25, np.full(10, 3)).tolist() == [i % 10 for i in range(20)] + [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("counts", "found"), [(None, "none"), (np.zeros(7, int), "7 classes of 0"), ([3, 4], "2 cl")])
def test_labels_of_training_images_that_nobody_has_counted(counts, found):
    counts = None if counts is None else np.array(counts)
    settings = {"num_images": 20, "num_classes": 7, "seed": 0, "batch_size": 8}
    with pytest.raises(InputError, match=f"each of 7 classes, found {found}.*--index index/train.json"):
        request(**settings, labels="training", counts=counts)


def test_shards_that_do_not_exist_or_are_empty():
    settings = {"num_images": 2, "num_classes": 2, "labels": "balanced", "seed": 0, "batch_size": 4}
    with pytest.raises(InputError, match="shard 3 does not exist"):
        request(**settings, shard=3, shards=3)
    with pytest.raises(InputError, match="is empty"):
        request(**settings, shard=0, shards=5)


def test_a_request_of_labels_is_the_beginning_of_a_set_and_its_prefix_goes_with_it():
    labels, prefix = np.array([4, 4, 1]), torch.tensor([[0, 1], [2, 3], [4, 5]])
    found = Request.of(labels, 3, prefix)
    whole = request(num_images=103, num_classes=7, labels="balanced", seed=3, batch_size=10)
    assert np.array_equal(found.seeds, whole.seeds[:3])
    rest = found[1:]
    assert (rest.images.tolist(), rest.labels.tolist()) == ([1, 2], [4, 1])
    assert torch.equal(rest.prefix, prefix[1:])
    assert whole[1:].prefix is None
