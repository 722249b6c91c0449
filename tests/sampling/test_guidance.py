"""Guidance and truncation against their definitions, one code at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.errors import InputError
from dpar.sampling.guidance import (
    DrawSettings,
    branch_labels,
    guidance_scales,
    guided,
    guided_tokens,
    gumbel_argmax,
    truncated,
)
from dpar.sampling.noise import gumbel


def kept_by_definition(logits: list[float], temperature: float, top_k: int, top_p: float) -> set[int]:
    """Codes that stay, by sorting and counting in plain Python."""
    scaled = [value / temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda code: -scaled[code])
    kept = order[:top_k] if top_k else order
    total = sum(math.exp(scaled[code]) for code in kept)
    nucleus, mass = set(), 0.0
    for code in kept:
        if top_p < 1 and mass >= top_p:
            break
        nucleus.add(code)
        mass += math.exp(scaled[code]) / total
    return nucleus


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-80, 80), min_size=2, max_size=12, unique=True),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.integers(0, 14),
    st.sampled_from([0.05, 0.31, 0.77, 0.993, 1.0]),
)
def test_truncation_is_its_definition(values, temperature, top_k, top_p):
    logits = [value / 16 for value in values]
    row = torch.tensor([logits], dtype=torch.float64)
    result = truncated(row, temperature=temperature, top_k=top_k, top_p=top_p)[0]
    kept = kept_by_definition(logits, temperature, top_k, top_p)
    assert {code for code in range(len(logits)) if result[code] > -torch.inf} == kept
    for code in kept:
        assert result[code].item() == pytest.approx(logits[code] / temperature)


@pytest.mark.parametrize("top_p", [1e-30, 1e-46, 1e-320, math.ulp(0.0)])
def test_the_likeliest_code_stays_whatever_float32_makes_of_top_p(top_p):
    result = truncated(torch.tensor([[1.0, 3.0, 2.0]]), temperature=1.0, top_k=0, top_p=top_p)
    assert (result > -torch.inf).tolist() == [[False, True, False]]


def test_ties_with_the_last_of_the_top_k_stay():
    result = truncated(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), temperature=1.0, top_k=2, top_p=1.0)
    assert (result > -torch.inf).tolist() == [[True, True, True, False]]


def test_guidance_runs_the_branches_it_needs():
    labels = torch.tensor([4, 2])
    assert branch_labels(labels, 9, [1.0, 1.0]).tolist() == [4, 2]
    assert branch_labels(labels, 9, [0.0, 0.0]).tolist() == [9, 9]
    assert branch_labels(labels, 9, [2.5, 2.5]).tolist() == [4, 2, 9, 9]
    assert branch_labels(labels, 9, [0.0, 1.0]).tolist() == [4, 2, 9, 9]
    c, u = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.equal(guided(torch.cat([c, u]), 2, 2.5), u + 2.5 * (c - u))
    assert torch.equal(guided(torch.cat([c, u]), 2, 1.0), c)
    assert guided(c, 2, 1.0) is c


def test_guidance_holds_from_one_share_of_the_sequence_to_the_other():
    assert guidance_scales(4, 2.0, (0.0, 1.0)) == [2.0] * 4
    assert guidance_scales(4, 2.0, (0.25, 0.75)) == [1.0, 2.0, 2.0, 1.0]
    assert guidance_scales(4, 0.0, (0.3, 1.0)) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("cfg_scale", "interval", "tokens"),
    [(2.0, (0.0, 1.0), 4), (2.0, (0.25, 0.75), 3), (0.0, (0.3, 1.0), 4), (0.0, (0.0, 1.0), 0), (1.0, (0.0, 1.0), 0)],
)
def test_both_branches_run_up_to_the_last_token_that_is_guided(cfg_scale, interval, tokens):
    assert guided_tokens(guidance_scales(4, cfg_scale, interval)) == tokens


def test_draws_follow_the_softmax():
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, -2.0], dtype=torch.float64)
    count = 40_000
    noise = gumbel(torch.arange(count), 3, 4, 5)[:, 0]
    share = torch.bincount(gumbel_argmax(logits.expand(count, 5), noise), minlength=5) / count
    assert torch.allclose(share.double(), logits.softmax(0), atol=0.01)


def test_codes_outside_are_never_drawn():
    logits = truncated(torch.randn(500, 12), temperature=1.0, top_k=3, top_p=1.0)
    codes = gumbel_argmax(logits, gumbel(torch.arange(500), 0, 1, 12)[:, 0])
    assert (logits.gather(1, codes[:, None]) > -torch.inf).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg_scale": -1.0}, "guidance scale is -1"),
        ({"cfg_scale": float("nan")}, "guidance scale is nan"),
        ({"cfg_scale": 1e38}, r"guidance scale is 1e\+38; expected .* up to 1,000,000"),
        ({"cfg_interval": (0.5, 0.5)}, r"guidance from 0\.5 to 0\.5 is no part"),
        ({"cfg_interval": (0.5, 1.5)}, r"guidance from 0\.5 to 1\.5 is no part"),
        *(
            ({name: value}, f"{name} is {value}; expected")
            for name, value in (
                ("temperature", 0),
                ("temperature", 1e-45),
                ("temperature", float("inf")),
                ("temperature", float("nan")),
                ("top_k", -1),
                ("top_p", 0.0),
                ("top_p", 1.5),
            )
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        DrawSettings(**{"cfg_scale": 2.0, **settings})


def test_settings_truncate_as_they_say():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    choice = {"temperature": 0.7, "top_k": 9, "top_p": 0.8}
    assert torch.equal(DrawSettings(2.0, **choice).truncated(logits), truncated(logits, **choice))
