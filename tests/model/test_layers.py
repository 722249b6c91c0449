import pytest
import torch
from torch import nn

from dpar.model.attention import causal_attention, packed_attention
from dpar.model.layers import Attention, Block, FeedForward, Head, RMSNorm, hidden_width
from dpar.model.rope import grid_rope
from dpar.patches.packing import PackedLengths
from tests.model.tiny import randomised
from tests.oracles import model as oracle
from tests.rehearsal import on_gpu, rehearsing


def named(network: nn.Module, name: str) -> oracle.Weights:
    return {f"{name}.{key}": value for key, value in network.state_dict().items()}


@pytest.mark.parametrize(("width", "hidden"), [(768, 2048), (1024, 2816), (1280, 3584), (1536, 4096), (32, 256)])
def test_hidden_width_is_two_thirds_of_four_widths_rounded_up_to_256(width, hidden):
    assert hidden_width(width) == hidden


@pytest.mark.parametrize("gradients", [True, False])
def test_norm_is_the_literal_one(float64, gradients):
    norm, x = randomised(RMSNorm(16)), torch.randn(3, 4, 16)
    expected = [[oracle.rms_norm(h, norm.weight) for h in row] for row in x]
    with torch.set_grad_enabled(gradients):
        found = norm(x)
    torch.testing.assert_close(found, torch.stack([torch.stack(row) for row in expected]))


def test_norm_of_half_precision_is_computed_in_fp32():
    norm, x = randomised(RMSNorm(64)), torch.randn(50, 64).bfloat16()
    with torch.no_grad():
        for same in (norm, norm.bfloat16()):
            exact = nn.functional.rms_norm(x.float(), (64,), same.weight.float(), 1e-5)
            assert torch.equal(same(x), exact.bfloat16())


def test_norm_of_half_precision_is_one_kernel_in_sampling():
    with rehearsing() as gpu, torch.no_grad():
        norm, x = on_gpu(RMSNorm(96).bfloat16()), torch.randn(2, 96).bfloat16().to("cuda")
        with gpu.logging() as log:
            norm(x)
    assert log.launches == 1


@pytest.mark.parametrize("gradients", [True, False])
def test_a_tiny_input_is_held_up_by_eps(gradients):
    norm = RMSNorm(4)
    with torch.set_grad_enabled(gradients):
        found = norm(torch.full((4,), 1e-4))
    torch.testing.assert_close(found, torch.full((4,), 1e-4 / (1e-8 + 1e-5) ** 0.5))


def test_feed_forward_is_the_literal_one(float64):
    network, x = randomised(FeedForward(16)), torch.randn(5, 16)
    expected = [oracle.feed_forward(h, named(network, "f"), "f") for h in x]
    torch.testing.assert_close(network(x), torch.stack(expected))


def test_block_is_the_literal_one_dense_and_packed_and_so_are_its_gradients(float64):
    network = randomised(Block(32, 2))
    x, rope = torch.randn(2, 5, 32, requires_grad=True), grid_rope(5, 1, 16, dtype=torch.float64)
    angles = [oracle.token_angles(row, 0, 16) for row in range(5)]
    weights = {f"b.{name}": value for name, value in network.named_parameters()}
    expected = torch.stack([torch.stack(oracle.block(list(image), angles, weights, "b", heads=2)) for image in x])
    packed = packed_attention(PackedLengths.from_lengths([5, 5]))
    found = {
        "dense": network(x, rope, causal_attention),
        "packed": network(x.flatten(0, 1), rope.repeat(2, 1, 1), packed).view_as(x),
    }
    direction = torch.randn_like(x)
    wanted = torch.autograd.grad(expected, [x, *network.parameters()], direction)
    for out in found.values():
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(torch.autograd.grad(out, [x, *network.parameters()], direction), wanted)


def test_attention_is_given_queries_keys_and_values_by_head(float64):
    network, x = randomised(Attention(32, 2)), torch.randn(3, 4, 32)
    rope, seen = grid_rope(1, 4, 16, dtype=torch.float64), {}

    def attend(q, k, v):
        seen.update(q=q, k=k, v=v)
        return v

    out = network(x, rope, attend)
    assert {name: tuple(tensor.shape) for name, tensor in seen.items()} == dict.fromkeys("qkv", (3, 4, 2, 16))
    torch.testing.assert_close(out, network.wo(seen["v"].flatten(-2)))


def test_dropout_is_on_the_outputs_of_attention_and_feed_forward_in_training_only():
    network, x, rope = Block(32, 2, dropout=0.5), torch.randn(1, 64, 32), grid_rope(8, 8, 16)
    zeros = {}
    network.attention.register_forward_hook(lambda *call: zeros.update(attention=(call[-1] == 0).float().mean().item()))
    network.feed_forward.register_forward_hook(lambda *call: zeros.update(ffn=(call[-1] == 0).float().mean().item()))
    network(x, rope, causal_attention)
    assert zeros == {"attention": pytest.approx(0.5, abs=0.05), "ffn": pytest.approx(0.5, abs=0.05)}
    network.eval()(x, rope, causal_attention)
    assert zeros == {"attention": 0, "ffn": 0}


def test_weights_begin_as_specified():
    torch.manual_seed(0)
    block = Block(256, 4)
    for name, parameter in block.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name
            assert parameter.mean().item() == pytest.approx(0, abs=2e-4), name
    assert not any(name.endswith("bias") for name, _ in block.named_parameters())
    assert not Head(8, 16).weight.any()


def test_logits_are_fp32_at_least():
    head, x = Head(8, 16), torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.float32
    assert head.bfloat16()(x.bfloat16()).dtype == torch.float32
    assert head.double()(x.double()).dtype == torch.float64
