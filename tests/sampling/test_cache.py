"""Cached attention equals causal attention over each row's own sequence."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dpar.sampling import cache as caches
from dpar.sampling.cache import RaggedCache, TokenCache

HEADS, HEAD_DIM = 2, 8


def causal(q, k, v):
    """Plain causal attention of one row, (N, H, Dh)."""
    return F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), is_causal=True).transpose(0, 1)


def test_synchronous_rows(float64):
    q, k, v = torch.randn(3, 4, 6, HEADS, HEAD_DIM)
    cache = TokenCache(2, 4, 6, HEADS, torch.empty(HEADS * HEAD_DIM))
    for layer in range(2):
        out = torch.cat([cache.attend(layer, t)(*(x[:, t : t + 1] for x in (q, k, v))) for t in range(6)], dim=1)
        for row in range(4):
            assert torch.allclose(out[row], causal(q[row], k[row], v[row]))


@pytest.mark.parametrize("entries", [1, 11, 1000], ids=["row_by_row", "pieces", "at_once"])
@pytest.mark.parametrize("sort", [True, False])
def test_rows_with_lengths_of_their_own(float64, monkeypatch, entries, sort):
    """Rows enter at random; the last entry of each call sees its row's own past and nothing else."""
    rows, length, layers = 5, 9, 2
    monkeypatch.setattr(caches, "PIECE", entries * 2 * HEADS * HEAD_DIM * 8)  # keys and values of 8 bytes
    q, k, v = torch.randn(3, rows, length, HEADS, HEAD_DIM)
    cache = RaggedCache(layers, rows, length, HEADS, torch.empty(HEADS * HEAD_DIM))
    random = np.random.default_rng(0)
    seen = np.zeros(rows, int)
    mixed = 0
    while seen.min() < length:
        entering = np.flatnonzero((random.random(rows) < 0.6) & (seen < length))
        if not len(entering):
            continue
        if sort:
            entering = cache.order(entering)
        mixed += len(set(seen[entering])) > 1 and len(entering) < rows
        attend = cache.append(entering)
        for layer in range(layers):
            now = [torch.stack([x[row, seen[row]] for row in entering])[:, None] for x in (q, k, v)]
            out = attend(layer)(*now)
            for i, row in enumerate(entering):
                until = seen[row] + 1
                assert torch.allclose(out[i, 0], causal(q[row, :until], k[row, :until], v[row, :until])[-1])
        seen[entering] += 1
        assert (cache.lengths == seen).all()
    assert mixed > 3


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), at_once=st.integers(1, 200))
def test_pieces_hold_every_row_and_no_more_than_they_may(lengths, at_once):
    sizes = caches._pieces(lengths, at_once)
    assert sum(sizes) == len(lengths)
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        padded = (end - start) * max(lengths[start:end])
        assert end == start + 1 or padded <= at_once
        if end < len(lengths):
            assert (end + 1 - start) * max(lengths[start : end + 1]) > at_once, "a row more would have fitted"
