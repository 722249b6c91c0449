"""Cached attention equals causal attention over each row's own sequence."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpar.sampling import cache as caches
from dpar.sampling.cache import RaggedCache, TokenCache, cached_attention

HEADS, HEAD_DIM = 2, 8


def causal(q, k, v):
    """Plain causal attention of one row, (N, H, Dh)."""
    return F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), is_causal=True).transpose(0, 1)


@pytest.fixture(autouse=True)
def small(monkeypatch, float64):
    """Room that is made anew every few entries; in float64."""
    monkeypatch.setattr(caches, "GROWTH", 4)


@pytest.fixture(params=["cpu", "half_precision_on_a_cpu", "as_on_a_gpu"])
def kind(request, monkeypatch):
    """How rooms are made and attention is computed; in float64 all the same."""
    if request.param == "as_on_a_gpu":
        monkeypatch.setattr(caches, "on_cpu", lambda like: False)
    elif request.param == "half_precision_on_a_cpu":
        monkeypatch.setattr(caches, "by_products", lambda like: False)
    return request.param


def test_synchronous_rows(kind):
    q, k, v = torch.randn(3, 4, 6, HEADS, HEAD_DIM)
    cache = TokenCache(2, 4, 6, HEADS, torch.empty(HEADS * HEAD_DIM))
    outs = []
    for t in range(6):
        at = cache.append(t)
        now = [x[:, t] for x in (q, k, v)]
        outs.append([cached_attention(*entries, at)(*now) for entries in zip(*cache.entries, strict=True)])
    for out in (torch.stack(layer, 1) for layer in zip(*outs, strict=True)):
        for row in range(4):
            assert torch.allclose(out[row], causal(q[row], k[row], v[row]))


def test_room_is_made_as_it_is_needed_and_no_more(kind):
    cache = TokenCache(1, 2, 6, HEADS, torch.empty(HEADS * HEAD_DIM))
    rooms = []
    for t in range(6):
        cache.append(t)
        rooms.append(cache.entries.keys[0].shape[2])
    assert rooms == ([7] * 6 if kind == "as_on_a_gpu" else [4, 4, 4, 4, 6, 6])


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("at_once", [1, 2, 1000], ids=["row_by_row", "pieces", "at_once"])
def test_rows_with_lengths_of_their_own(kind, monkeypatch, at_once, share):
    """Rows enter at random; the last entry of each call sees its row's own past and nothing else."""
    rows, length, layers = 5, 9, 2
    monkeypatch.setattr(caches, "GATHER_BYTES", at_once * 4 * 2 * HEADS * HEAD_DIM * 8)  # keys and values of 8 bytes
    q, k, v = torch.randn(3, rows, length, HEADS, HEAD_DIM)
    cache = RaggedCache(layers, rows, length, HEADS, torch.empty(HEADS * HEAD_DIM))
    random = np.random.default_rng(0)
    seen = np.zeros(rows, int)
    mixed = 0
    while seen.min() < length:
        entering = np.flatnonzero((random.random(rows) < share) & (seen < length))
        if not len(entering):
            continue
        random.shuffle(entering)
        mixed += len(set(seen[entering])) > 1 and len(entering) < rows
        at = cache.append(entering)
        for layer in zip(*cache.entries, strict=True):
            now = [torch.stack([x[row, seen[row]] for row in entering]) for x in (q, k, v)]
            out = cached_attention(*layer, at)(*now)
            for i, row in enumerate(entering):
                until = seen[row] + 1
                assert torch.allclose(out[i], causal(q[row, :until], k[row, :until], v[row, :until])[-1])
        seen[entering] += 1
        assert (cache.lengths == seen).all()
    assert mixed > 3


@pytest.mark.parametrize(("entering", "pieces"), [(1, [1]), (2, [1, 1]), (4, [])])
def test_a_cpu_moves_rows_in_pieces_unless_most_enter(monkeypatch, entering, pieces):
    monkeypatch.setattr(caches, "GATHER_BYTES", 1)
    cache = RaggedCache(1, 6, 9, HEADS, torch.empty(HEADS * HEAD_DIM))
    at = cache.append(np.arange(entering))
    assert [1 if isinstance(rows, int) else len(rows) for rows in at.pieces] == pieces
    assert at.scatter_queries == (entering == 4)


def test_a_gpu_moves_nothing_where_all_enter_and_needs_no_mask_where_all_are_as_long(monkeypatch):
    monkeypatch.setattr(caches, "on_cpu", lambda like: False)
    cache = RaggedCache(1, 3, 9, HEADS, torch.empty(HEADS * HEAD_DIM))
    first, second = (cache.append(np.arange(3)) for _ in range(2))
    assert (first.pieces, second.pieces, second.biases) == ((), (), (None,))
    assert [rows.tolist() for rows in cache.append(np.array([0, 2])).pieces] == [[0, 2]]
    ragged = cache.append(np.arange(3))
    assert ragged.pieces == ()
    assert ragged.biases[0].shape == (3, 1, 4)


@pytest.mark.parametrize("when", [3, 5])
def test_rows_that_go_on_alone(kind, when):
    """What is kept is what those rows had read, and goes on from there."""
    q, k, v = torch.randn(3, 4, 6, HEADS, HEAD_DIM)
    like = torch.empty(HEADS * HEAD_DIM)
    together, apart = TokenCache(1, 4, 6, HEADS, like), RaggedCache(1, 4, 6, HEADS, like)
    rows = 4
    for t in range(6):
        if t == when:
            rows = 2
            together.truncate_batch(rows)
            apart.truncate_batch(rows)
        now = [x[:rows, t] for x in (q, k, v)]
        for cache, at in ((together, together.append(t)), (apart, apart.append(np.arange(rows)))):
            (layer,) = zip(*cache.entries, strict=True)
            out = cached_attention(*layer, at)(*now)
            for row in range(rows):
                assert torch.allclose(out[row], causal(*(x[row, : t + 1] for x in (q, k, v)))[-1])
