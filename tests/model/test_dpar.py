import math

import pytest
import torch
import torch.nn.functional as F

from dpar.model.dpar import DPAR
from dpar.patches.packing import PatchLayout
from dpar.patches.rule import patch_starts, static_starts
from tests.model.tiny import VOCAB, patches, tiny_batch, tiny_dpar
from tests.oracles.model import dpar_logits

SCHEMES = ("dynamic", "dynamic_no_redundancy", "2d")
STARTS = {  # of images of 3 rows of 4 tokens
    "patches of one token": torch.stack([patches(*[1] * 12)] * 2),
    "equal patches": torch.stack([patches(2, 2, 2, 2, 2, 2)] * 2),
    "very unequal patches": torch.stack([patches(1, 11), patches(1, 1, 1, 1, 4, 1, 1, 1, 1)]),
    "a batch of one": patches(1, 3, 4, 4)[None],
    "a last patch of one token": torch.stack([patches(1, 3, 4, 3, 1), patches(1, 10, 1)]),
    "static patches": static_starts(2, 12, 1.81),
    "patches over the ends of rows": torch.stack([patches(1, 4, 5, 2), patches(1, 2, 3, 3, 3)]),
    "one patch": patches(12)[None],
}


def check_against_oracle(model: DPAR, starts: torch.Tensor, grid: tuple[int, int] = (3, 4)) -> None:
    """Packed logits = one image at a time = the literal forward of Algorithm 1."""
    tokens, labels = tiny_batch(len(starts), grid)
    with torch.no_grad():
        logits = model(tokens, labels, starts)
        assert logits.shape == (*tokens.shape, VOCAB)
        for i in range(len(starts)):
            alone = model(tokens[i : i + 1], labels[i : i + 1], starts[i : i + 1])[0]
            given = (tokens[i].tolist(), int(labels[i]), starts[i].tolist())
            literal = dpar_logits(model.state_dict(), *given, grid[1], 2, model.config.position)
            torch.testing.assert_close(logits[i], alone)
            torch.testing.assert_close(logits[i], literal)


@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS.keys())
def test_logits_are_the_literal_ones(float64, starts):
    check_against_oracle(tiny_dpar(), starts)


@pytest.mark.parametrize("position", SCHEMES)
def test_logits_are_the_literal_ones_in_every_position_scheme(float64, position):
    check_against_oracle(tiny_dpar(position=position), STARTS["patches over the ends of rows"])


@pytest.mark.parametrize(("encoder_layers", "layers", "decoder_layers"), [(2, 1, 1), (3, 1, 2), (1, 2, 2)])
def test_logits_are_the_literal_ones_at_other_depths(float64, encoder_layers, layers, decoder_layers):
    model = tiny_dpar(encoder_layers=encoder_layers, layers=layers, decoder_layers=decoder_layers)
    check_against_oracle(model, STARTS["very unequal patches"])


@pytest.mark.parametrize("grid", [(2, 5), (5, 2), (1, 6), (6, 1), (1, 2)])
def test_logits_are_the_literal_ones_on_any_grid(float64, grid):
    starts = patch_starts(torch.rand(2, grid[0] * grid[1]), threshold=0.5, max_length=3, grid_width=grid[1])
    check_against_oracle(tiny_dpar(grid), starts, grid)


def test_gradients_are_the_literal_ones(float64):
    model, (tokens, labels) = tiny_dpar(), tiny_batch(2)
    starts = STARTS["very unequal patches"]
    weights = dict(model.named_parameters())
    literal = [
        dpar_logits(weights, tokens[i].tolist(), int(labels[i]), starts[i].tolist(), 4, 2, "dynamic") for i in range(2)
    ]
    losses = [
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        for logits in (model(tokens, labels, starts), torch.stack(literal))
    ]
    found, expected = (torch.autograd.grad(loss, list(weights.values())) for loss in losses)
    torch.testing.assert_close(found, expected)


def test_query_of_a_patch_is_the_maximum_of_its_tokens(float64):
    """The oracle says so too; a mean instead must be noticed."""
    model, (tokens, labels) = tiny_dpar(), tiny_batch(1)
    queries = []
    model.encoder.layers[0].cross_attention.register_forward_pre_hook(
        lambda _, arguments: queries.extend(arguments[:2])
    )
    model(tokens, labels, patches(1, 3, 4, 4)[None])
    query, states = queries
    assert torch.equal(query[1], states[1:4].amax(0))


# how it is built and called


def test_first_loss_is_exactly_ln_v(float64):
    torch.manual_seed(0)
    model = DPAR(tiny_dpar().config)
    logits = model(*tiny_batch(2), STARTS["equal patches"])
    assert not logits.any()
    loss = F.cross_entropy(logits.flatten(0, 1), tiny_batch(2)[0].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), rel=1e-14)


def test_a_layout_is_as_good_as_starts():
    model, (tokens, labels), starts = tiny_dpar(), tiny_batch(2), STARTS["very unequal patches"]
    assert torch.equal(model(tokens, labels, starts), model(tokens, labels, PatchLayout.from_starts(starts)))


def test_forward_runs_on_the_meta_device_with_real_patch_lengths():
    model = DPAR(tiny_dpar().config).to("meta")
    tokens, labels = (tensor.to("meta") for tensor in tiny_batch(2))
    layout = PatchLayout.from_starts(STARTS["very unequal patches"])
    assert model(tokens, labels, layout).shape == (2, 12, VOCAB)


def test_linear_layers_run_over_the_rows_of_table_8():
    """Tokens T-1 in the encoder, patches M in cross-attention and patch transformer, tokens T in the decoder."""
    model, (tokens, labels), starts = tiny_dpar(encoder_layers=2), tiny_batch(2), STARTS["very unequal patches"]
    rows = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda module, arguments, name=name: rows.update({name: arguments[0].numel() // module.in_features})
            )
    model(tokens, labels, starts)
    patches_of_all, tokens_of_all = int(starts.sum()), tokens.numel()
    for name, count in rows.items():
        if ".cross_attention.wk" in name or ".cross_attention.wv" in name or ("encoder" in name and ".block." in name):
            assert count == tokens_of_all - 2, name
        elif ".block." in name or name == "decoder.output":
            assert count == tokens_of_all, name
        else:
            assert count == patches_of_all, name
    assert len(rows) == 2 * (5 + 4) + 5 + (1 + 5) + 1


def test_only_the_patch_transformer_drops():
    rates = {name: m.p for name, m in tiny_dpar().named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if name.startswith("patch_transformer")} == {0.1}
    assert {rate for name, rate in rates.items() if not name.startswith("patch_transformer")} == {0.0}


def test_bf16_autocast_trains_with_fp32_logits_and_gradients_everywhere():
    model, (tokens, labels) = tiny_dpar(encoder_layers=2).train(), tiny_batch(2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens, labels, STARTS["very unequal patches"])
    assert logits.dtype == torch.float32
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_bf16_is_near_fp32():
    model, (tokens, labels), starts = tiny_dpar(), tiny_batch(2), STARTS["very unequal patches"]
    exact = model(tokens, labels, starts)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens, labels, starts)
    assert (found - exact).std() < 0.05 * exact.std()  # bf16 keeps 8 bits through some ten products in a row


def test_state_names():
    block = ["attention.wqkv", "attention.wo", "attention_norm", "ffn_norm"]
    block += [f"feed_forward.w{i}" for i in (1, 2, 3)]
    names = ["cls_embedding.embedding_table", "tok_embeddings", "decoder.norm", "decoder.output"]
    names += [f"encoder.layers.0.block.{part}" for part in block]
    names += [
        f"encoder.layers.0.cross_attention.{part}" for part in ("query_norm", "token_norm", "wq", "wk", "wv", "wo")
    ]
    names += [f"patch_transformer.layers.0.{part}" for part in block]
    names += [f"decoder.layers.0.block.{part}" for part in block]
    names += ["decoder.layers.0.norm", "decoder.layers.0.projection"]
    assert sorted(tiny_dpar().state_dict()) == sorted(["start", *(f"{name}.weight" for name in names)])


@pytest.mark.gpu
def test_a_gpu_gives_the_logits_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    model, (tokens, labels), starts = (
        tiny_dpar(attention="sdpa").double(),
        tiny_batch(2),
        STARTS["very unequal patches"],
    )
    on_cpu = model(tokens, labels, starts)
    on_gpu = model.cuda()(tokens.cuda(), labels.cuda(), starts)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu)
