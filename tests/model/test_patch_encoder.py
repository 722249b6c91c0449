import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dpar.model.attention import causal_attention
from dpar.model.patch_encoder import POOLINGS, PatchCrossAttention, PatchEncoder, segment_softmax
from dpar.model.rope import grid_rope
from dpar.patches.packing import PatchLayout
from tests.model.tiny import patches, randomised
from tests.oracles import model as oracle

segments = st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any)


@pytest.mark.parametrize("pooling", POOLINGS)
@given(segments)
@settings(deadline=None, derandomize=True)
def test_pooling_is_that_of_each_segment(pooling, sizes):
    ids = torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)])
    generator = torch.Generator().manual_seed(0)  # small whole numbers: some are equal, and share the gradient
    values = torch.randint(-9, -5, (len(ids), 3), generator=generator).double().requires_grad_()
    pooled = {"max": lambda rows: rows.amax(0), "mean": lambda rows: rows.mean(0)}[pooling]
    zeros = torch.zeros(3, dtype=torch.float64)
    expected = torch.stack([pooled(own) if len(own) else zeros for own in values.split(sizes)])
    found = POOLINGS[pooling](values, ids, len(sizes))
    torch.testing.assert_close(found, expected)
    direction = torch.randn(len(sizes), 3, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad(result, values, direction)[0] for result in (found, expected)]
    torch.testing.assert_close(*gradients)


@given(segments)
@settings(deadline=None, derandomize=True)
def test_segment_softmax_is_that_of_each_segment(sizes):
    ids = torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)])
    scores = 300 * torch.randn(len(ids), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = segment_softmax(scores, ids, len(sizes))
    for weights, own in zip(found.split(sizes), scores.split(sizes), strict=True):
        torch.testing.assert_close(weights, own.softmax(0))


def test_cross_attention_is_the_literal_one_and_so_are_its_gradients(float64):
    network, sizes = randomised(PatchCrossAttention(32, 2)), [1, 4, 2, 2]
    query, states = (torch.randn(count, 32, requires_grad=True) for count in (4, 9))
    weights = {f"c.{name}": value for name, value in network.named_parameters()}
    ids = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    found = network(query, states, ids)
    expected = torch.stack(
        [
            oracle.cross_attention(query[m], list(own), weights, "c", heads=2)
            for m, own in enumerate(states.split(sizes))
        ]
    )
    torch.testing.assert_close(found, expected)
    inputs, direction = [query, states, *network.parameters()], torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction)
    )


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any result had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_cross_attention_makes_no_mask_of_tokens_by_patches():
    network = PatchCrossAttention(32, 2)
    tokens, count = 4096, 2048
    ids = torch.arange(count).repeat_interleave(2)
    with LargestTensor() as largest, torch.no_grad():
        network(torch.randn(count, 32), torch.randn(tokens, 32), ids)
    assert 0 < largest.elements <= tokens * 32


@pytest.mark.parametrize(("layers", "pooling"), [(1, "max"), (2, "max"), (1, "mean"), (2, "mean")])
def test_encoder_is_the_literal_one(float64, layers, pooling):
    encoder = randomised(PatchEncoder(32, 2, layers, pooling))
    starts = torch.stack([patches(1, 3, 1, 3), patches(1, 1, 2, 4)])
    tokens, rope = torch.randn(2, 7, 32), grid_rope(2, 4, 16, dtype=torch.float64)[:-1]
    layout = PatchLayout.from_starts(starts)
    states, found = encoder(tokens, rope, causal_attention, layout.rows[:, :-1], layout.packed.total)
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    angles = [oracle.token_angles(t // 4, t % 4, 16) for t in range(7)]
    for image in range(2):
        spans = oracle.patch_spans(starts[image].tolist())
        expected_states, expected = oracle.encode(weights, list(tokens[image]), angles, spans, 2, pooling)
        torch.testing.assert_close(states[image], torch.stack(expected_states))
        torch.testing.assert_close(found[4 * image : 4 * image + 3], torch.stack(expected))


def test_a_patch_state_depends_on_its_own_tokens_and_earlier_ones_only(float64):
    encoder, layout = randomised(PatchEncoder(32, 2, 2)), PatchLayout.from_starts(patches(1, 3, 2, 2)[None])
    tokens = torch.randn(1, 7, 32, requires_grad=True)
    rope = grid_rope(2, 4, 16, dtype=torch.float64)[:-1]
    _, found = encoder(tokens, rope, causal_attention, layout.rows[:, :-1], 4)
    (gradient,) = torch.autograd.grad(found[1].sum(), tokens)
    assert gradient[0, :4].any(-1).all()
    assert not gradient[0, 4:].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_last_patch_without_a_visible_token_is_finite_and_harms_no_gradient(pooling):
    encoder, layout = randomised(PatchEncoder(32, 2, 2, pooling)), PatchLayout.from_starts(patches(1, 2, 1)[None])
    tokens = torch.randn(1, 3, 32, requires_grad=True)
    _, found = encoder(tokens, grid_rope(1, 3, 16), causal_attention, layout.rows[:, :-1], 3)
    assert found.isfinite().all()
    found[:2].sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
