import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dpar.experiment.settings import Transformer
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.entropy_regressor import EntropyRegressor, EntropyRegressorConfig
from dpar.model.flops import (
    BACKWARD,
    count_linear_macs,
    forward_gmacs,
    forward_parts,
    full_gmacs,
    kv_cache_bytes,
    sampling_gmacs,
    training_gmacs,
)
from dpar.model.llamagen import LlamaGen, LlamaGenConfig
from dpar.model.variants import build_model, model_config
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule, patch_starts
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.sampler import sample

PATCHES = {256: 141.8, 384: 280.2}
TABLE_8 = [
    ("B", 256, 24.98, 19.21),
    ("L", 256, 83.26, 56.74),
    ("XL", 256, 192.69, 125.52),
    ("B", 384, 56.21, 40.92),
    ("L", 384, 187.35, 117.92),
    ("XL", 384, 433.57, 258.53),
]
TABLE_1 = {"B": 115_021_824, "L": 351_306_752, "XL": 789_455_360, "XXL": 1_434_579_456}
LLAMAGEN = {"B": 110_888_448, "L": 342_910_976, "XL": 774_699_520, "XXL": 1_410_972_672}


def sizes(name: str, resolution: int = 256, num_classes: int | None = 1000):
    grid = (resolution // 16, resolution // 16)
    return model_config(Transformer(variant=name), vocab_size=16384, grid=grid, num_classes=num_classes)


@cache
def on_meta(name: str, resolution: int = 256, num_classes: int | None = 1000):
    grid = (resolution // 16, resolution // 16)
    with torch.device("meta"):
        return build_model(Transformer(variant=name), vocab_size=16384, grid=grid, num_classes=num_classes)


@pytest.mark.parametrize(("size", "resolution", "llamagen", "dpar"), TABLE_8)
def test_table_8(size, resolution, llamagen, dpar):
    assert forward_gmacs(sizes(f"LlamaGen-{size}", resolution)) == pytest.approx(llamagen, rel=2e-3)
    assert forward_gmacs(sizes(f"DPAR-{size}", resolution), PATCHES[resolution]) == pytest.approx(dpar, rel=2e-3)


@pytest.mark.parametrize("size", TABLE_1)
def test_parameters_of_table_1(size):
    for name, expected in (("DPAR", TABLE_1), ("LlamaGen", LLAMAGEN)):
        assert sum(p.numel() for p in on_meta(f"{name}-{size}").parameters()) == expected[size]


def entropies(images: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return 7.8 + torch.randn(images, tokens, generator=torch.Generator().manual_seed(seed))


def meta_inputs(images: int, tokens: int):
    empty = torch.zeros(images, tokens, dtype=torch.long, device="meta")
    return empty, torch.zeros(images, dtype=torch.long, device="meta")


@pytest.mark.parametrize("name", [f"DPAR-{size}" for size in TABLE_1])
@pytest.mark.parametrize("resolution", [256, 384])
def test_the_layers_of_dpar_do_what_the_formula_says(name, resolution):
    """Counted in the real modules, with the patches of two images that the rule cut."""
    model, side = on_meta(name, resolution), resolution // 16
    starts = patch_starts(entropies(2, side**2), threshold=7.8, max_length=4, grid_width=side)
    counted = count_linear_macs(model, *meta_inputs(2, side**2), starts)
    patches = starts.sum(1).double().numpy()
    assert counted == round(1e9 * np.sum(forward_gmacs(sizes(name, resolution), patches)))


@pytest.mark.parametrize("name", [f"LlamaGen-{size}" for size in LLAMAGEN])
@pytest.mark.parametrize("num_classes", [1000, None])
def test_the_layers_of_llamagen_do_what_the_formula_says(name, num_classes):
    model = on_meta(name, num_classes=num_classes)
    tokens, labels = meta_inputs(2, 256)
    counted = count_linear_macs(model, tokens, *([labels] if num_classes else []))
    assert counted == round(1e9 * 2 * forward_gmacs(sizes(name, num_classes=num_classes)))


def test_a_distilled_gate_has_no_head_to_speak_of():
    size = sizes("LlamaGen-B", num_classes=None)
    config = EntropyRegressorConfig(**{**dict(size), "layers": 3})
    with torch.device("meta"):
        model = EntropyRegressor(config)
    parts = forward_parts(config)
    assert count_linear_macs(model, meta_inputs(2, 256)[0]) == 2 * sum(part.linear for part in parts.values())
    assert parts["head"].linear == 255 * 768
    assert parts["transformer"] == forward_parts(size.model_copy(update={"layers": 3}))["transformer"]


small = st.fixed_dictionaries(
    {
        "width": st.sampled_from([32, 64]),
        "heads": st.sampled_from([1, 2]),
        "encoder_layers": st.integers(1, 2),
        "layers": st.integers(1, 2),
        "decoder_layers": st.integers(1, 2),
        "vocab_size": st.integers(2, 40),
        "grid": st.tuples(st.integers(1, 4), st.integers(2, 5)),
        "num_classes": st.integers(1, 5),
    }
)


@settings(deadline=None, derandomize=True, max_examples=8)
@given(small, st.integers(0, 100), st.integers(1, 5))
def test_small_models_do_what_the_formula_says(values, seed, max_length):
    config = DPARConfig(**values)
    with torch.device("meta"):
        model = DPAR(config)
    starts = patch_starts(
        entropies(3, config.tokens, seed), threshold=7.8, max_length=max_length, grid_width=config.grid[1]
    )
    counted = count_linear_macs(model, *meta_inputs(3, config.tokens), starts)
    patches = starts.sum(1).double().numpy()
    assert counted == sum(part.linear for part in forward_parts(config, patches).values()).sum()


@pytest.mark.parametrize("name", ["DPAR-B", "LlamaGen-B"])
def test_an_independent_counter_agrees(name):
    """PyTorch's counter sees every product: the linear layers' and attention's, which it takes as not causal."""
    model, config = on_meta(name), sizes(name)
    starts = patch_starts(entropies(2, 256), threshold=7.8, max_length=4, grid_width=16)
    patches = starts.sum(1).tolist()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*meta_inputs(2, 256), *([starts] if isinstance(config, DPARConfig) else []))
    found = {str(op): flops // 2 for op, flops in counter.get_flop_counts()["Global"].items()}
    linear = sum(n for op, n in found.items() if "bmm" not in op)
    attention = sum(n for op, n in found.items() if "bmm" in op)
    width = config.width
    if isinstance(config, DPARConfig):
        per_image = [forward_parts(config, m) for m in patches]
        # of n x n products, the causal ones are n (n + 1) / 2
        dense = sum(2 * width * (config.encoder_layers * 255**2 + config.decoder_layers * 256**2) for _ in patches)
        dense += sum(2 * width * config.layers * m**2 for m in patches)
        squares = [(255, config.encoder_layers), (256, config.decoder_layers)]
        causal = sum(width * layers * n * (n + 1) for n, layers in squares) * len(patches)
        causal += sum(width * config.layers * m * (m + 1) for m in patches)
        gathering = len(patches) * 2 * width * config.encoder_layers * 255
    else:
        per_image = [forward_parts(config)] * 2
        dense = 2 * 2 * width * config.layers * 256**2
        causal, gathering = 2 * width * config.layers * 256 * 257, 0
    assert linear == sum(part.linear for parts in per_image for part in parts.values())
    assert attention == dense
    assert sum(part.attention for parts in per_image for part in parts.values()) == causal + gathering


@pytest.mark.parametrize("name", ["DPAR-B", "LlamaGen-B"])
def test_a_backward_pass_costs_two_forward_passes(name):
    """Each product, be it of weights or of attention, has two gradients; counted by PyTorch while both passes run."""
    model = on_meta(name)
    starts = patch_starts(entropies(2, 256), threshold=7.8, max_length=4, grid_width=16)
    inputs = (*meta_inputs(2, 256), *([starts] if name.startswith("DPAR") else []))
    with FlopCounterMode(display=False) as forward:
        loss = model(*inputs).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == BACKWARD * forward.get_total_flops() > 0


def test_counting_leaves_the_model_as_it_was():
    model = on_meta("DPAR-B")
    starts = torch.ones(1, 256, dtype=torch.bool)
    first = count_linear_macs(model, *meta_inputs(1, 256), starts)
    assert count_linear_macs(model, *meta_inputs(1, 256), starts) == first
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_cost_rises_with_patches_and_a_patch_a_token_costs_more_than_llamagen():
    cost = full_gmacs(sizes("DPAR-L"), np.arange(1, 257.0))
    assert (np.diff(cost) > 0).all()
    assert cost[-1] > full_gmacs(sizes("LlamaGen-L"))


def test_training_is_forward_and_backward():
    assert training_gmacs(sizes("LlamaGen-L")) == 3 * full_gmacs(sizes("LlamaGen-L"))
    # Figure 1b's claim: 40 % fewer at XL-384
    ratio = training_gmacs(sizes("DPAR-XL", 384), 280.2) / training_gmacs(sizes("LlamaGen-XL", 384))
    assert ratio == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(("size", "ratio"), [("B", 1.27), ("L", 0.83), ("XL", 0.72)])
def test_sampling_with_guidance_against_llamagen(size, ratio):
    """The linear layers of two whole branches and of the entropy model on every token."""
    entropy_model = sizes("LlamaGen-B", num_classes=None)
    plain = {"shared_encoder": False, "attention": False}
    ours = sampling_gmacs(sizes(f"DPAR-{size}"), 141.8, entropy_model=entropy_model, **plain)
    theirs = sampling_gmacs(sizes(f"LlamaGen-{size}"), **plain)
    assert ours / theirs == pytest.approx(ratio, abs=0.005)


def test_what_guidance_and_the_entropy_model_add():
    config, entropy_model = sizes("DPAR-L"), sizes("LlamaGen-B", num_classes=None)
    parts = {name: part.total / 1e9 for name, part in forward_parts(config, 142).items()}
    once = sampling_gmacs(config, 142, guided=False)
    assert once == pytest.approx(sum(parts.values()))
    assert once == pytest.approx(full_gmacs(config, 142))
    assert sampling_gmacs(config, 142) == pytest.approx(2 * once - parts["encoder"])
    assert sampling_gmacs(config, 142, shared_encoder=False) == pytest.approx(2 * once)
    added = sampling_gmacs(config, 142, entropy_model=entropy_model) - sampling_gmacs(config, 142)
    assert added == pytest.approx(full_gmacs(entropy_model))


@pytest.mark.parametrize(("interval", "share"), [((0.0, 1.0), 1), ((0.0, 0.5), 0.5), ((0.25, 0.75), 0.75)])
@pytest.mark.parametrize("architecture", ["llamagen", "dpar"])
def test_the_sampler_computes_the_second_branch_as_long_as_is_said(architecture, interval, share):
    sizes = {"vocab_size": 9, "grid": (3, 4), "num_classes": 3, "width": 32, "heads": 2, "layers": 2}
    dpar = DPARConfig(**sizes, decoder_layers=1)
    model = (DPAR(dpar) if architecture == "dpar" else LlamaGen(LlamaGenConfig(**sizes))).eval()
    a_patch_a_token = PatchRule(grid_width=4, static_length=1)
    images = {"labels": torch.arange(2), "seeds": torch.arange(2)}
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output.numel() * module.in_features

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    sample(model, None, **images, rule=a_patch_a_token, settings=DrawSettings(2.0, interval))
    patches = 12 if architecture == "dpar" else None
    expected = sampling_gmacs(model.config, patches, guided=share, attention=False) * 1e9
    assert counted / 2 == pytest.approx(expected, rel=2e-3)  # the last patch of an image is never gathered
    assert sampling_gmacs(model.config, patches, guided=share) > expected / 1e9


def test_cache_bytes_are_those_of_the_keys_and_values():
    config = LlamaGenConfig(vocab_size=8, grid=(2, 3), num_classes=2, width=32, heads=2, layers=3)
    keys = torch.zeros(3, 6, 2, 16, dtype=torch.bfloat16)  # layers, positions, heads, head width
    assert kv_cache_bytes(config, guided=False) == 2 * keys.nbytes
    assert kv_cache_bytes(config) == 4 * keys.nbytes
    dpar = DPARConfig(
        vocab_size=8, grid=(2, 3), num_classes=2, width=32, heads=2, encoder_layers=1, layers=3, decoder_layers=2
    )
    rows = 1 * 5 + 2 * (3 * 4 + 2 * 6)
    assert kv_cache_bytes(dpar, 4) == 2 * 2 * 32 * rows
    gate = LlamaGenConfig(vocab_size=8, grid=(2, 3), width=16, heads=1, layers=2)
    assert kv_cache_bytes(dpar, 4, entropy_model=gate) - kv_cache_bytes(dpar, 4) == 2 * 2 * 16 * 2 * 5


def test_costs_of_a_data_set_are_means_over_its_images():
    config = sizes("DPAR-B")
    starts = patch_starts(entropies(50, 256).numpy(), threshold=7.8, max_length=4, grid_width=16)
    counts = PatchCounts.of(starts)
    over_images = counts.expectation(training_gmacs(config, np.arange(257.0)))
    assert over_images == pytest.approx(np.mean([training_gmacs(config, m) for m in starts.sum(1).tolist()]))
    assert math.isclose(counts.expectation(forward_gmacs(config, np.arange(257.0))), forward_gmacs(config, counts.mean))
    assert over_images > training_gmacs(config, counts.mean)  # attention grows with the square
