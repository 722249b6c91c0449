"""Order, views, resumption and ranks of the loader."""

import threading
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.data.codes import CodeStore
from dpar.data.loader import (
    batches,
    epoch_order,
    epoch_views,
    prefetched,
    random_bits,
    random_uniform,
    sequential,
    steps_per_epoch,
)
from dpar.errors import InputError
from tests.data.samples import METADATA
from tests.oracles import data as oracle

exact = settings(deadline=None, derandomize=True, max_examples=50)


def store_of(num_images, num_views=4, scored=False):
    """A store in which every row says where it is from: tokens (image, view, ...), entropy the same."""
    image, view = np.meshgrid(np.arange(num_images), np.arange(num_views), indexing="ij")
    tokens = np.zeros((num_images, num_views, 6), np.uint16)
    tokens[..., 0], tokens[..., 1] = image, view
    entropy = tokens.astype(np.float32) if scored else None
    labels = (np.arange(num_images) % 7).astype(np.int32)
    metadata = METADATA.model_copy(update={"views": num_views})
    return CodeStore(metadata, "digest", tokens, labels, entropy)


def places(items):
    return [pair for batch in items for pair in zip(batch.images.tolist(), batch.views.tolist(), strict=True)]


@exact
@given(st.integers(0, 2**63), st.sampled_from(["order", "view"]), st.integers(0, 1000), st.integers(0, 2**31))
def test_random_bits_are_those_of_the_oracle(seed, stream, epoch, image):
    found = random_bits(seed, stream, epoch, np.array([image, image + 1]))
    assert found.dtype == np.uint64
    assert found.tolist() == [oracle.random_bits(seed, stream, epoch, i) for i in (image, image + 1)]


def test_the_order_of_a_run_never_changes():
    assert epoch_order(8, seed=0, epoch=0).tolist() == [6, 7, 2, 4, 0, 1, 3, 5]
    assert epoch_views(np.arange(8), 20, seed=0, epoch=0).tolist() == [16, 10, 19, 7, 16, 8, 1, 7]


@exact
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 40), st.integers(0, 5), st.integers(0, 30))
def test_a_global_batch_is_that_of_the_oracle(num_images, num_views, batch_size, seed, step):
    if batch_size > num_images:
        return
    batch = next(batches(store_of(num_images, num_views), batch_size=batch_size, seed=seed, start_step=step))
    assert places([batch]) == oracle.global_batch(num_images, num_views, batch_size, seed, step)
    assert (batch.step, batch.epoch) == (step, step // (num_images // batch_size))


@exact
@given(st.integers(2, 40), st.integers(1, 10), st.integers(0, 3))
def test_an_epoch_shows_every_image_once(num_images, batch_size, epoch):
    batch_size = min(batch_size, num_images)
    store = store_of(num_images)
    steps = steps_per_epoch(store, batch_size)
    found = list(islice(batches(store, batch_size=batch_size, seed=1, start_step=epoch * steps), steps))
    images = torch.cat([batch.images for batch in found]).tolist()
    assert len(images) == len(set(images)) == steps * batch_size > num_images - batch_size
    assert {batch.epoch for batch in found} == {epoch}


@exact
@given(st.integers(0, 25), st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 3)]))
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(start, shape):
    world_size, accumulate = shape
    store = store_of(31, scored=True)
    options = {"batch_size": 6, "seed": 3, "world_size": world_size, "accumulate": accumulate}
    for rank in range(world_size):
        whole = list(islice(batches(store, rank=rank, **options), 40 * accumulate))[start * accumulate :]
        resumed = list(islice(batches(store, rank=rank, start_step=start, **options), len(whole)))
        assert len(whole) == len(resumed) > 0
        for a, b in zip(whole, resumed, strict=True):
            assert (a.step, a.epoch) == (b.step, b.epoch)
            for name in ("tokens", "labels", "entropy", "images", "views"):
                assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_ranks_and_micro_batches_only_divide_the_global_batch(world_size, accumulate):
    store = store_of(53)
    streams = [
        batches(store, batch_size=24, seed=5, rank=rank, world_size=world_size, accumulate=accumulate)
        for rank in range(world_size)
    ]
    whole = batches(store, batch_size=24, seed=5)
    for step in range(5):
        parts = [next(streams[rank]) for micro in range(accumulate) for rank in range(world_size)]
        assert {part.step for part in parts} == {step}
        assert {len(part.images) for part in parts} == {24 // (world_size * accumulate)}
        assert places(parts) == places([next(whole)])


def test_a_batch_holds_the_rows_it_names():
    for batch in islice(batches(store_of(20, scored=True), batch_size=8, seed=0), 5):
        assert batch.tokens.dtype == batch.labels.dtype == batch.images.dtype == torch.long
        assert batch.entropy.dtype == torch.float32
        assert torch.equal(batch.tokens[:, 0], batch.images)
        assert torch.equal(batch.tokens[:, 1], batch.views)
        assert torch.equal(batch.entropy, batch.tokens.float())
        assert torch.equal(batch.labels, batch.images % 7)
    assert next(batches(store_of(20), batch_size=8, seed=0)).entropy is None


def test_order_and_views_change_with_seed_and_epoch():
    images = np.arange(1000)
    for draw in (lambda s, e: epoch_order(1000, s, e), lambda s, e: epoch_views(images, 20, s, e)):
        found = [tuple(draw(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
        assert len(set(found)) == 4


def test_views_are_equally_likely_and_independent_of_the_batch():
    images = np.arange(40_000)
    views = epoch_views(images, 20, seed=0, epoch=0)
    counts = np.bincount(views, minlength=20)
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000)
    part = np.array([17, 4, 39_999])
    assert np.array_equal(epoch_views(part, 20, seed=0, epoch=0), views[part])


def test_uniform_numbers_are_uniform():
    found = random_uniform(0, "class dropout", 0, np.arange(40_000))
    assert found.min() >= 0
    assert found.max() < 1
    assert abs(np.histogram(found, 20, (0, 1))[0] - 2000).max() < 5 * np.sqrt(2000)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02


def test_a_batch_that_cannot_be_filled_or_divided_is_refused():
    with pytest.raises(InputError, match="5 images do not fill one batch of 6"):
        batches(store_of(5), batch_size=6, seed=0)
    with pytest.raises(InputError, match="batch size 6 cannot be divided by 2 ranks x 2 micro-batches"):
        batches(store_of(50), batch_size=6, seed=0, world_size=2, accumulate=2)


@pytest.mark.parametrize("world_size", [1, 3])
def test_sequential_shows_one_view_of_every_image_once(world_size):
    store = store_of(11)
    found = [b for rank in range(world_size) for b in sequential(store, 4, view=2, rank=rank, world_size=world_size)]
    assert sorted(places(found)) == [(image, 2) for image in range(11)]
    if world_size == 1:
        assert [len(batch.images) for batch in found] == [4, 4, 3]
        assert places(found) == [(image, 2) for image in range(11)]


class TestPrefetched:
    def test_gives_the_same_items(self):
        assert list(prefetched(iter(range(50)), depth=3)) == list(range(50))
        assert list(prefetched([])) == []

    def test_works_at_most_depth_ahead(self):
        made = []
        items = prefetched((made.append(i) or i for i in range(100)), depth=4)
        assert [next(items) for _ in range(10)] == list(range(10))
        assert len(made) <= 10 + 4
        items.close()

    def test_raises_an_error_when_its_turn_comes(self):
        def failing():
            yield 1
            yield 2
            raise InputError("the third")

        items = prefetched(failing())
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(InputError, match="the third"):
            next(items)

    def test_leaves_no_thread_behind(self):
        before = threading.active_count()
        items = prefetched(batches(store_of(20), batch_size=4, seed=0))
        next(items)
        items.close()
        assert threading.active_count() == before
