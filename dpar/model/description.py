"""Parameters, cost and cache of a variant (Tables 1 and 8)."""

import math
from typing import Any

import torch
from torch import nn

from dpar.errors import InputError
from dpar.experiment.settings import VARIANTS, Transformer
from dpar.model import flops
from dpar.model.dpar import DPARConfig
from dpar.model.llamagen import LlamaGenConfig
from dpar.model.variants import build_model, model_config
from dpar.paper import (
    DOWNSAMPLE,
    NUM_CLASSES,
    PAPER_DISAGREES,
    PAPER_GMACS,
    PAPER_PARAMETERS,
    PAPER_PATCHES,
    VOCAB_SIZE,
)


def describe(variant: str, resolution: int, patches: float | None = None) -> dict[str, Any]:
    """Sizes, costs and cache of a model, for JSON.

    Args:
        variant: a key of `VARIANTS`.
        resolution: pixels.
        patches: mean patches per image; by default the paper's mean at this resolution.

    Raises:
        InputError: the variant is unknown, the resolution is not made of whole tokens, or the patches are missing,
            impossible, or given to a model that has none.
    """
    if variant not in VARIANTS:
        raise InputError(f"there is no variant {variant!r}; variants are {', '.join(VARIANTS)}")
    if resolution < DOWNSAMPLE or resolution % DOWNSAMPLE:
        raise InputError(f"a resolution of {resolution} pixels is not a multiple of the tokenizer's {DOWNSAMPLE}")
    config = _config(variant, resolution)
    patches = _patches(config, resolution, patches)
    model = _on_meta(variant, resolution)
    parts = flops.forward_parts(config, patches)
    found: dict[str, Any] = {
        "variant": variant,
        "resolution": resolution,
        "tokens": config.tokens,
        "patches": patches,
        "parameters": sum(p.numel() for p in model.parameters()),
        "forward_gmacs": flops.forward_gmacs(config, patches),
        "counted_gmacs": _counted_gmacs(model, config, patches),
        "attention_gmacs": sum(part.attention for part in parts.values()) / 1e9,
        "training_gmacs": flops.training_gmacs(config, patches),
        "parts": {name: {"linear": p.linear / 1e9, "attention": p.attention / 1e9} for name, p in parts.items()},
        "sampling": _sampling(config, patches, resolution),
    }
    if isinstance(config, DPARConfig):
        found["scoring_gmacs"] = flops.full_gmacs(_entropy_model(resolution))
        counterpart = variant.replace("DPAR", "LlamaGen")
        baseline = _config(counterpart, resolution)
        theirs = _sampling(baseline, None, resolution)
        found["against"] = counterpart
        found["ratios"] = {
            "forward": found["forward_gmacs"] / flops.forward_gmacs(baseline),
            "training": found["training_gmacs"] / flops.training_gmacs(baseline),
            "sampling": {name: found["sampling"][name] / theirs[name] for name in theirs},
        }
    found["paper"] = {
        "parameters_m": PAPER_PARAMETERS[variant],
        "forward_gmacs": PAPER_GMACS.get((variant, resolution)),
        "disagreement": PAPER_DISAGREES.get(variant),
    }
    return found


def _config(variant: str, resolution: int, num_classes: int | None = NUM_CLASSES) -> LlamaGenConfig | DPARConfig:
    side = resolution // DOWNSAMPLE
    transformer = Transformer.model_validate({"variant": variant})
    return model_config(transformer, vocab_size=VOCAB_SIZE, grid=(side, side), num_classes=num_classes)


def _entropy_model(resolution: int) -> LlamaGenConfig:
    config = _config("LlamaGen-B", resolution, num_classes=None)
    assert isinstance(config, LlamaGenConfig)
    return config


def _on_meta(variant: str, resolution: int) -> nn.Module:
    """The real modules, with shapes and without numbers."""
    side = resolution // DOWNSAMPLE
    with torch.device("meta"):
        transformer = Transformer.model_validate({"variant": variant})
        return build_model(transformer, vocab_size=VOCAB_SIZE, grid=(side, side), num_classes=NUM_CLASSES)


def _patches(config: LlamaGenConfig | DPARConfig, resolution: int, patches: float | None) -> float | None:
    if isinstance(config, LlamaGenConfig):
        if patches is not None:
            raise InputError("LlamaGen has no patches; leave --patches away, or name a DPAR variant")
        return None
    patches = PAPER_PATCHES.get(resolution) if patches is None else patches
    if patches is None:
        raise InputError(
            f"the paper counts patches at 256 and 384 pixels, not at {resolution}: say with --patches how many an "
            "image has in the mean (`dpar patchify` counts them in stored entropies)"
        )
    if not 1 <= patches <= config.tokens:
        raise InputError(
            f"an image of {config.tokens} tokens cannot have {patches:g} patches; give 1 to {config.tokens}"
        )
    return patches


def _counted_gmacs(model: nn.Module, config: LlamaGenConfig | DPARConfig, patches: float | None) -> float:
    """1e9 MACs of the linear layers while the real modules run, in the mean over images around `patches` patches."""
    tokens = torch.zeros(1, config.tokens, dtype=torch.long, device="meta")
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    if patches is None:
        return flops.count_linear_macs(model, tokens, labels) / 1e9
    fewer, share = math.floor(patches), patches % 1
    mean = 0.0
    for count, weight in ((fewer, 1 - share), (fewer + 1, share)):
        if weight:
            starts = torch.arange(config.tokens)[None] < count
            mean += weight * flops.count_linear_macs(model, tokens, labels, starts)
    return mean / 1e9


def _sampling(config: LlamaGenConfig | DPARConfig, patches: float | None, resolution: int) -> dict[str, Any]:
    """Cost and cache of sampling one image; DPAR's with its default entropy model on every token."""
    entropy_model = _entropy_model(resolution) if isinstance(config, DPARConfig) else None

    def gmacs(**how: bool) -> Any:
        return flops.sampling_gmacs(config, patches, entropy_model=entropy_model, **how)

    def cache(guided: bool) -> int:
        return round(float(flops.kv_cache_bytes(config, patches, entropy_model=entropy_model, guided=guided)))

    return {
        "guided_gmacs": gmacs(),
        "guided_linear_gmacs": gmacs(shared_encoder=False, attention=False),
        "unguided_gmacs": gmacs(guided=False),
        "guided_kv_cache_bytes": cache(True),
        "unguided_kv_cache_bytes": cache(False),
    }
