import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.model.rope import grid_rope, patch_rope, rotate, token_rope, zero_rope
from tests.oracles import model as oracle

SCHEMES = ("dynamic", "dynamic_no_redundancy", "2d")


def table(angles: list[float]) -> torch.Tensor:
    return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=torch.float64)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (4, 3), (16, 16), (24, 24)])
def test_grid_is_eq_8_in_raster_order(rows, columns, head_dim):
    found = grid_rope(rows, columns, head_dim, dtype=torch.float64)
    expected = [oracle.token_angles(row, column, head_dim) for row in range(rows) for column in range(columns)]
    torch.testing.assert_close(found, torch.stack([table(angles) for angles in expected]))
    assert grid_rope(rows, columns, head_dim).dtype == torch.float32


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("head_dim", [16, 64])
def test_patch_is_eq_9_and_table_9(scheme, head_dim):
    spans = [(0, 0), (1, 3), (4, 6), (13, 13), (5, 9), (0, 13)]  # the last two run over the end of a row
    first, last = torch.tensor(spans).unbind(1)
    found = patch_rope(first // 7, first % 7, last % 7, head_dim, scheme, dtype=torch.float64)
    expected = [table(oracle.patch_angles(*span, 7, head_dim, scheme)) for span in spans]
    torch.testing.assert_close(found, torch.stack(expected))


def test_pairs_of_the_dynamic_scheme_for_a_head_of_64():
    def angles(row, start, end):
        rope = patch_rope(*(torch.tensor(value) for value in (row, start, end)), 64, dtype=torch.float64)
        return torch.atan2(rope[:, 1], rope[:, 0])

    row, start, end = angles(1, 0, 0), angles(0, 1, 0), angles(0, 0, 1)
    alpha = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)  # 10000^(-16(i-1)/64)
    torch.testing.assert_close(row[:16], 10000.0 ** (-4 * torch.arange(16, dtype=torch.float64) / 64))
    torch.testing.assert_close(start[16:], torch.cat((alpha, 0 * alpha, 0 * alpha, alpha)))
    torch.testing.assert_close(end[16:], torch.cat((0 * alpha, alpha, alpha, 0 * alpha)))
    assert not row[16:].any()
    assert not start[:16].any()
    assert not end[:16].any()


def test_rotation_is_that_of_each_pair(float64):
    x, rope = torch.randn(5, 3, 16), token_rope(torch.arange(5), torch.arange(5) * 2, 16, dtype=torch.float64)
    expected = [
        torch.stack([oracle.rotated(head, oracle.token_angles(i, 2 * i, 16)) for head in heads])
        for i, heads in enumerate(x)
    ]
    torch.testing.assert_close(rotate(x, rope), torch.stack(expected))
    torch.testing.assert_close(rotate(x.expand(4, 5, 3, 16), rope), torch.stack(expected).expand(4, 5, 3, 16))


def test_compiled_rotation_is_the_same_function(float64, monkeypatch):
    x, rope = torch.randn(2, 5, 3, 32, requires_grad=True), grid_rope(1, 5, 32, dtype=torch.float64)
    eager = rotate(x, rope)
    (eager_gradient,) = torch.autograd.grad(eager.square().sum() + eager[0, 1, 2, 3], x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = rotate(x, rope)
    (compiled_gradient,) = torch.autograd.grad(compiled.square().sum() + compiled[0, 1, 2, 3], x)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(compiled_gradient, eager_gradient)


@given(row=st.integers(-9, 9), column=st.integers(-9, 9))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_products_depend_on_the_difference_of_cells_only(row, column):
    q, k = torch.randn(2, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()

    def product(r, c, dr, dc):
        at = [
            token_rope(torch.tensor(i), torch.tensor(j), 32, dtype=torch.float64) for i, j in ((r, c), (r + dr, c + dc))
        ]
        return (rotate(q, at[0]) * rotate(k, at[1])).sum()

    torch.testing.assert_close(product(3, 5, row, column), product(11, 2, row, column))


def test_a_class_token_has_zero_queries_and_keys():
    assert not rotate(torch.randn(2, 4, 16), zero_rope(2, 16)).any()


def test_half_precision_is_rotated_in_fp32():
    x, rope = torch.randn(300, 2, 64).bfloat16(), grid_rope(1, 300, 64)
    turned = rotate(x, rope)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), rope).bfloat16())
