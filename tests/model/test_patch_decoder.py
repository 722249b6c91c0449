import torch

from dpar.model.attention import causal_attention
from dpar.model.patch_decoder import PatchDecoder
from dpar.model.rope import grid_rope
from dpar.patches.packing import PatchLayout
from tests.model.tiny import patches, randomised
from tests.oracles import model as oracle


def test_it_is_the_literal_one(float64):
    decoder, starts = (
        randomised(PatchDecoder(32, 2, 2, vocab_size=13)),
        torch.stack([patches(1, 4, 1), patches(1, 2, 3)]),
    )
    layout, rope = PatchLayout.from_starts(starts), grid_rope(2, 3, 16, dtype=torch.float64)
    tokens, outputs = torch.randn(2, 6, 32), torch.randn(6, 32)
    found = decoder(tokens, outputs, layout.rows, rope, causal_attention)
    weights = {f"d.{name}": value for name, value in decoder.state_dict().items()}
    angles = [oracle.token_angles(t // 3, t % 3, 16) for t in range(6)]
    for image in range(2):
        h = list(tokens[image])
        for i in range(2):
            for m, (first, last) in enumerate(oracle.patch_spans(starts[image].tolist())):
                normed = oracle.rms_norm(outputs[3 * image + m], weights[f"d.layers.{i}.norm.weight"])
                known = weights[f"d.layers.{i}.projection.weight"] @ normed
                h = [a + known if first <= t <= last else a for t, a in enumerate(h)]
            h = oracle.block(h, angles, weights, f"d.layers.{i}.block", heads=2)
        expected = [weights["d.output.weight"] @ oracle.rms_norm(a, weights["d.norm.weight"]) for a in h]
        torch.testing.assert_close(found[image], torch.stack(expected))


def test_patches_are_projected_before_they_are_copied(float64):
    """The cost is one D x D product a patch, not a token (Table 8)."""
    decoder, layout = randomised(PatchDecoder(32, 2, 1, vocab_size=13)), PatchLayout.from_starts(patches(1, 5)[None])
    rows = []
    decoder.layers[0].projection.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    decoder(
        torch.randn(1, 6, 32),
        torch.randn(2, 32),
        layout.rows,
        grid_rope(2, 3, 16, dtype=torch.float64),
        causal_attention,
    )
    assert rows == [2]


def test_gradients_of_a_patch_are_summed_in_float32_under_autocast():
    """1,000 ones: bfloat16 cannot count beyond 256."""
    layer = PatchDecoder(8, 1, 1, vocab_size=3).layers[0]
    tokens, patches, rows = torch.zeros(1, 1000, 8), torch.zeros(1, 8), torch.zeros(1, 1000, dtype=torch.long)
    given = []
    layer.projection.register_full_backward_hook(lambda _, __, gradients: given.append(gradients[0]))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.add_patch_state(tokens, patches.requires_grad_(), rows)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert given[0].dtype == torch.bfloat16
    torch.testing.assert_close(given[0].float(), torch.full((1, 8), 1000.0))
