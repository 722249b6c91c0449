"""The roofline adds what is counted: by layers, by entries of the caches, by images that open a patch together."""

from dataclasses import replace

import pytest
import torch

from dpar.evaluation import roofline
from dpar.evaluation.kernels import Kernel
from dpar.evaluation.roofline import CARDS, TERMS, Card, Cost, Drawing, token_cost
from dpar.model.dpar import DPARConfig
from dpar.model.flops import sampling_gmacs
from dpar.model.llamagen import LlamaGenConfig
from dpar.patches.rule import PatchRule

SIZES = {"vocab_size": 512, "grid": (4, 8), "width": 64, "heads": 2}
MODEL = DPARConfig(**SIZES, num_classes=5, layers=5, decoder_layers=2)
GATE = LlamaGenConfig(**SIZES, layers=3)
DRAWING = Drawing(MODEL, GATE, "tf32", PatchRule(8, 0.0, 4))
LLAMAGEN = Drawing(LlamaGenConfig(**SIZES, num_classes=5, layers=6))
CARD = Card(bfloat16=1.0, tf32=0.5, float32=0.25, bandwidth=1.0, compute_share=1.0, bandwidth_share=1.0)


def test_a_kernel_takes_the_longest_of_moving_computing_and_the_least_time():
    kernel = Kernel("mm", 1e6, 0.0, 4e6, torch.bfloat16)
    assert CARD.seconds(kernel, 0, "float32") == pytest.approx(4e-6)
    assert CARD.seconds(kernel._replace(dtype=torch.float32), 0, "tf32") == pytest.approx(8e-6)
    assert CARD.seconds(kernel._replace(dtype=torch.float32), 0, "float32") == pytest.approx(16e-6)
    assert CARD.seconds(kernel._replace(flops=0.0), 0, "float32") == pytest.approx(1e-6)
    assert CARD.seconds(kernel._replace(flops=0.0, entry_bytes=1e4), 500, "float32") == pytest.approx(6e-6)
    slow = replace(CARD, shortest_kernel=7.0, bandwidth_share=0.5)
    assert slow.seconds(kernel, 0, "float32") == pytest.approx(7e-6)
    assert slow.seconds(kernel._replace(flops=0.0, entry_bytes=1e4), 500, "float32") == pytest.approx(12e-6)


def test_launches_bound_what_is_not_captured():
    cost = Cost(100, dict.fromkeys(TERMS, 0.0) | {"products": 2e-4, "other": 1e-4})
    assert cost.captured == pytest.approx(3e-4)
    assert cost.launched(CARD) == pytest.approx(5e-4)
    assert cost.launched(replace(CARD, launch=1.0)) == pytest.approx(3e-4)
    assert cost.bound_by == "products"


@pytest.mark.parametrize("drawing", [DRAWING, replace(DRAWING, gate_precision="float32"), LLAMAGEN])
def test_products_are_those_of_the_formula(drawing):
    """Where memory is free, the time is that of the multiply-accumulates; padding and rows that must begin add some."""
    card = replace(CARD, bandwidth=1e9, tf32=1.0, float32=1.0)
    patches = 18.0 if drawing.gate else None
    cost = token_cost(drawing, 32, card, patches)
    gmacs = sampling_gmacs(drawing.model, patches, entropy_model=drawing.gate, attention=False)
    found = cost.captured * drawing.model.tokens / 32 / 2 * 1e3
    assert found == pytest.approx(float(gmacs), rel=0.12 if drawing.gate else 0.02)
    assert found > 0.97 * float(gmacs)


def test_layers_cost_alike():
    """What two layers say of five is what five layers say."""

    def counted(drawing, batch):
        patches = 18.0 if drawing.gate else None
        parts = (
            roofline._dpar_cost(drawing, batch, CARD, patches)
            if patches
            else roofline._llamagen_cost(drawing, batch, CARD)
        )
        return parts + roofline._boundary_cost(drawing, batch, CARD) if patches else parts

    for drawing in (DRAWING, LLAMAGEN):
        found, expected = token_cost(drawing, 8, CARD, 18.0 if drawing.gate else None), counted(drawing, 8)
        assert found.kernels == pytest.approx(expected.kernels)
        assert found.seconds == pytest.approx(expected.seconds)


def test_keys_and_values_grow_with_the_length_of_the_sequence():
    """Twice the tokens are read at each of them, and of every layer."""

    def entries(grid):
        config = LLAMAGEN.model.model_copy(update={"grid": grid})
        return token_cost(replace(LLAMAGEN, model=config), 8, CARD).seconds["keys_and_values"]

    heads_and_channels, rows, layers = 64, 16, 6
    mean = {(4, 8): (32 + 1) / 2, (8, 8): (64 + 1) / 2}
    per_entry = 2 * heads_and_channels * 2 * rows * layers / 1e12
    assert entries((8, 8)) - entries((4, 8)) == pytest.approx(per_entry * (mean[8, 8] - mean[4, 8]))


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_images_that_open_a_patch_are_as_many_as_there_are_patches(batch):
    for patches in (8.0, 18.0, 32.0):
        opening = list(roofline._opening(DRAWING, batch, patches))
        assert sum(count * share for count, share in opening) == pytest.approx(batch * patches / 32, rel=2e-3)
        assert all(called.size > called.mean - 1e-9 for called, _ in roofline._by_bucket(iter(opening), batch))
    static = replace(DRAWING, gate=None, rule=PatchRule(8, static_length=2.0))
    assert list(roofline._opening(static, batch, 16.0)) == [(batch, 0.5)]


def test_what_costs_more():
    def captured(**changed):
        return token_cost(replace(DRAWING, **changed), 64, CARDS["H200"], 18.0).captured

    usual = captured()
    assert captured(gate_precision="float32") > usual > captured(gate_precision="bfloat16")
    assert captured(fused_noise=False) > usual > captured(guided=False)
    assert captured(precision="float32") > usual
    assert captured(gate=None, rule=PatchRule(8, static_length=1.78)) < usual
    assert token_cost(DRAWING, 64, CARDS["A100"], 18.0).captured > usual
    assert token_cost(DRAWING, 64, CARDS["H200"], 24.0).captured > usual


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_images_that_open_a_patch_cost_equal_steps(batch):
    """Kernels for any number of them follow from those for the least and the most."""
    for size in {roofline.bucket(count, batch) for count in range(1, batch + 1)}:
        assert roofline._opened(DRAWING, batch, size) == roofline._counted(DRAWING, batch, "open", size)


def test_a_part_needs_no_more_than_what_is_counted_for_it():
    """Neither gate nor rule, but for the longest patch; boundaries see neither the model nor which limit it is."""
    for part in ("encode", "decode", "noise", "open", "place"):
        size = 8 if part == "open" else 0
        assert roofline._counted(DRAWING, 8, part, size) == roofline._counted_once(DRAWING, 8, part, size), part
    other = replace(DRAWING, gate=replace_layers(GATE), rule=replace(DRAWING.rule, row_boundary=False))
    assert roofline._needed(DRAWING, "open") == roofline._needed(other, "open") != DRAWING
    assert roofline._needed(DRAWING, "place") != roofline._needed(other, "place")
    free = replace(DRAWING, rule=replace(DRAWING.rule, max_length=None))
    assert roofline._counted(free, 8, "place") == roofline._counted_once(free, 8, "place", 0)


def replace_layers(config):
    """The same with one more."""
    return config.model_copy(update={"layers": config.layers + 1})
