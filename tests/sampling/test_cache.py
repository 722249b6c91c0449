"""Cached attention equals causal attention over each row's own sequence."""

import numpy as np
import torch
import torch.nn.functional as F

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


def test_rows_with_lengths_of_their_own(float64):
    """Rows enter at random; the last entry of each call sees its row's own past and nothing else."""
    rows, length, layers = 5, 9, 2
    q, k, v = torch.randn(3, rows, length, HEADS, HEAD_DIM)
    cache = RaggedCache(layers, rows, length, HEADS, torch.empty(HEADS * HEAD_DIM))
    random = np.random.default_rng(0)
    seen = np.zeros(rows, int)
    mixed = 0
    while seen.min() < length:
        entering = np.flatnonzero((random.random(rows) < 0.6) & (seen < length))
        if not len(entering):
            continue
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
