"""Parameters, cost and cache of a model, beside the paper's Tables 1 and 8 and beside LlamaGen of the same size."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dpar.config import VARIANTS, Transformer
from dpar.errors import InputError
from dpar.evaluation import flops
from dpar.model.dpar import DPARConfig
from dpar.model.llamagen import LlamaGenConfig
from dpar.model.variants import build_model, model_config

DOWNSAMPLE, VOCAB_SIZE, NUM_CLASSES = 16, 16384, 1000
PAPER_MAX_LENGTH = 4
"""The longest patch of the paper's models, in tokens."""

PAPER_THRESHOLD = {256: 7.8, 384: 7.9}
"""The entropy threshold of the paper's models by resolution in pixels, in nats."""

PAPER_PATCHES = {256: 141.8, 384: 280.2}
"""Mean patches an image that it gives, at which all of Table 8 comes out (Table 2 rounds them as steps)."""

PAPER_PARAMETERS = {  # millions, Tables 1 and 2
    "DPAR-B": 120, "DPAR-L": 352, "DPAR-XL": 789, "DPAR-XXL": 1400,
    "LlamaGen-B": 111, "LlamaGen-L": 343, "LlamaGen-XL": 775, "LlamaGen-XXL": 1400,
}  # fmt: skip
PAPER_GMACS = {  # 1e9, Table 8
    ("LlamaGen-B", 256): 24.98, ("LlamaGen-L", 256): 83.26, ("LlamaGen-XL", 256): 192.69,
    ("LlamaGen-B", 384): 56.21, ("LlamaGen-L", 384): 187.35, ("LlamaGen-XL", 384): 433.57,
    ("DPAR-B", 256): 19.21, ("DPAR-L", 256): 56.74, ("DPAR-XL", 256): 125.52,
    ("DPAR-B", 384): 40.92, ("DPAR-L", 384): 117.92, ("DPAR-XL", 384): 258.53,
}  # fmt: skip
PAPER_DISAGREES = {
    "DPAR-B": "the paper contradicts itself: Table 1 prints 120 M parameters, but the layers that its Sections "
    "3.2.2-3.2.4 describe (and its Table 8 counts to 0.1 %) have 115.02 M",
}


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = argparse.ArgumentParser(prog="dpar info", description=__doc__)
    flags.add_argument("variant", metavar="VARIANT", help=", ".join(VARIANTS))
    flags.add_argument("--resolution", type=int, required=True, help="pixels, the side of the image")
    flags.add_argument("--patches", type=float, help="mean patches an image (default: the paper's, at 256 and at 384)")
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what `describe` finds.

    Raises:
        InputError: as `describe`.
    """
    args = parser().parse_args(argv)
    found = describe(args.variant, args.resolution, args.patches)
    print(json.dumps(found, indent=2) if args.json else table(found))


def describe(variant: str, resolution: int, patches: float | None = None) -> dict[str, Any]:
    """Everything the command says about a model, for JSON.

    Args:
        variant: a key of `VARIANTS`.
        resolution: pixels.
        patches: mean patches an image; by default the paper's mean at this resolution.

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
    gate = _entropy_model(resolution) if isinstance(config, DPARConfig) else None

    def gmacs(**how: bool) -> Any:
        return flops.sampling_gmacs(config, patches, entropy_model=gate, **how)

    def cache(guided: bool) -> int:
        return round(float(flops.kv_cache_bytes(config, patches, entropy_model=gate, guided=guided)))

    return {
        "guided_gmacs": gmacs(),
        "guided_linear_gmacs": gmacs(shared_encoder=False, attention=False),
        "unguided_gmacs": gmacs(guided=False),
        "guided_kv_cache_bytes": cache(True),
        "unguided_kv_cache_bytes": cache(False),
    }


def table(found: dict[str, Any]) -> str:
    """What `describe` found, as a table for people."""
    paper, ratios, sampling = found["paper"], found.get("ratios"), found["sampling"]
    side = math.isqrt(found["tokens"])
    patches = "" if found["patches"] is None else f", {found['patches']:g} patches an image"

    def row(label: str, value: str, ratio: float | None = None, beside: str = "") -> str:
        return f"{label:<52}{value:>14}{f'{ratio:.2f}x' if ratio else '':>8}  {beside}".rstrip()

    def gmacs(label: str, key: str) -> str:
        return row(label, f"{sampling[key]:.2f} G", ratios and ratios["sampling"][key])

    def cache(label: str, key: str) -> str:
        return row(label, f"{sampling[key] / 2**20:.2f} MiB", ratios and ratios["sampling"][key])

    printed = paper["forward_gmacs"]
    lines = [
        f"{found['variant']} at {found['resolution']} x {found['resolution']}: {side} x {side} tokens{patches}",
        "multiply-accumulates (MACs) and bytes are of one image"
        + (f"; x = beside {found['against']}" if ratios else ""),
        "",
        row(
            "parameters",
            f"{found['parameters'] / 1e6:.2f} M",
            None,
            f"paper: {paper['parameters_m']} M ({found['parameters'] / 1e6 / paper['parameters_m'] - 1:+.1%})",
        ),
        row(
            "forward, linear layers (Table 8)",
            f"{found['forward_gmacs']:.2f} G",
            ratios and ratios["forward"],
            f"paper: {printed:.2f} ({found['forward_gmacs'] / printed - 1:+.2%})" if printed else "",
        ),
        row("  the same, counted while the real layers run", f"{found['counted_gmacs']:.2f} G"),
        *(row(f"  of which {name.replace('_', ' ')}", f"{p['linear']:.2f} G") for name, p in found["parts"].items()),
        row("forward, products of causal attention", f"{found['attention_gmacs']:.2f} G"),
        row(
            "training, forward and backward, with attention",
            f"{found['training_gmacs']:.2f} G",
            ratios and ratios["training"],
        ),
        *([row("scoring one stored view, once", f"{found['scoring_gmacs']:.2f} G")] if ratios else []),
        gmacs("sampling with guidance", "guided_gmacs"),
        gmacs("  linear layers alone, branches sharing nothing", "guided_linear_gmacs"),
        gmacs("sampling without guidance", "unguided_gmacs"),
        cache("keys and values with guidance, bfloat16", "guided_kv_cache_bytes"),
        cache("keys and values without guidance, bfloat16", "unguided_kv_cache_bytes"),
    ]
    if ratios:
        lines += [
            "",
            "Scoring is one pass of the entropy model, an unconditional LlamaGen-B; sampling runs it on every token.",
        ]
    if paper["disagreement"]:
        lines += ["", f"Note: {paper['disagreement']}."]
    return "\n".join(lines)
