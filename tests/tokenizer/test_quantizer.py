import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.tokenizer import quantizer
from dpar.tokenizer.quantizer import Quantizer, nearest
from tests.oracles.tokenizer import nearest_codes


def make(codebook: torch.Tensor) -> Quantizer:
    module = Quantizer(*codebook.shape).to(codebook.dtype)
    with torch.no_grad():
        module.embedding.weight.copy_(codebook)
    return module


@settings(deadline=None, derandomize=True, max_examples=25)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 24), dim=st.integers(2, 9), height=st.integers(1, 4))
def test_codes_are_those_of_the_literal_search(seed, size, dim, height):
    rng = np.random.default_rng(seed)
    book, latents = rng.normal(size=(size, dim)), rng.normal(size=(2, dim, height, 3))
    codes = make(torch.from_numpy(book)).encode(torch.from_numpy(latents))
    expected = nearest_codes(latents.transpose(0, 2, 3, 1).reshape(-1, dim), book)
    assert codes.shape == (2, height, 3)
    assert codes.flatten().tolist() == expected


def test_the_first_of_equal_rows_is_chosen():
    row = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    latents = torch.tensor([[3.0, 0.0], [0.0, 0.2], [1.0, 1.0]], dtype=torch.float64)
    assert nearest(F.normalize(latents, dim=1), row).tolist() == [1, 0, 0]
    assert nearest_codes(latents.numpy(), row.numpy()) == [1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [25, 32, 500])
def test_equal_rows_are_equal_wherever_they_stand(size, dtype):
    """A matrix product rounds columns by their place: a row's double further on can seem nearer by the last bit."""
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(size, 8, dtype=dtype), dim=1)
    codes = nearest(F.normalize(torch.randn(256, 8, dtype=dtype), dim=1), torch.cat((rows, rows, rows[:7])))
    assert codes.max() < size
    assert nearest(rows, torch.cat((rows, rows))).tolist() == list(range(size))


def test_lengths_of_latents_and_rows_do_not_matter():
    torch.manual_seed(0)
    book, latents = torch.randn(32, 8), torch.randn(2, 8, 3, 5)
    codes = make(book).encode(latents)
    assert torch.equal(make(book * torch.logspace(-2, 2, 32)[:, None]).encode(7 * latents), codes)


def test_searching_in_parts_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    book, latents = torch.randn(32, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64)
    whole = nearest(latents, book)
    monkeypatch.setattr(quantizer, "ROWS_AT_ONCE", 7)
    assert torch.equal(nearest(latents, book), whole)


def test_decoding_gives_rows_of_length_one_that_encode_to_themselves():
    torch.manual_seed(0)
    module = make(torch.randn(20, 8))
    codes = torch.randint(0, 20, (2, 3, 5))
    rows = module.decode(codes)
    assert rows.shape == (2, 8, 3, 5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2, 3, 5))
    assert torch.equal(module.encode(rows), codes)


def test_the_gradient_goes_straight_through_to_the_latents():
    torch.manual_seed(0)
    module = make(torch.randn(20, 4, dtype=torch.float64))
    latents = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    out = module(latents)
    torch.testing.assert_close(out.rows, module.decode(out.codes))
    (found,) = torch.autograd.grad((weights * out.rows).sum(), latents, retain_graph=True)
    (expected,) = torch.autograd.grad((weights * F.normalize(latents, dim=1)).sum(), latents)
    assert torch.equal(found, expected)


def test_codebook_loss_moves_rows_and_commitment_loss_moves_latents():
    torch.manual_seed(0)
    module = make(torch.randn(20, 4))
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = module(latents)
    parameters = (module.embedding.weight, latents)
    row_gradient, none = torch.autograd.grad(out.codebook_loss, parameters, allow_unused=True, retain_graph=True)
    assert none is None
    assert set(row_gradient.abs().sum(1).nonzero().flatten().tolist()) == set(out.codes.unique().tolist())
    none, latent_gradient = torch.autograd.grad(out.commitment_loss, parameters, allow_unused=True)
    assert none is None
    assert latent_gradient.abs().sum() > 0
    distance = (F.normalize(latents, dim=1) - module.decode(out.codes)).square().mean()
    torch.testing.assert_close(out.codebook_loss, distance)
    torch.testing.assert_close(out.commitment_loss, distance)


@pytest.mark.parametrize("size", [16, 16384])
def test_rows_begin_with_length_one(size):
    torch.testing.assert_close(Quantizer(size, 8).embedding.weight.norm(dim=1), torch.ones(size))
