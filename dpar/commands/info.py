"""Parameters, cost and cache of a model, next to the paper's Tables 1 and 8 and to LlamaGen of the same size."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from dpar.experiment.settings import VARIANTS
from dpar.model.description import describe
from dpar.workflow.options import SIDE, Parser


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar info", description=__doc__)
    flags.add_argument("variant", metavar="VARIANT", help=", ".join(VARIANTS))
    flags.add_argument("--resolution", type=SIDE, required=True, help="pixels, the side of the image")
    flags.add_argument("--patches", type=float, help="mean patches per image (default: the paper's, at 256 and at 384)")
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


def table(found: dict[str, Any]) -> str:
    """The result of `describe` as a table."""
    paper, ratios, sampling = found["paper"], found.get("ratios"), found["sampling"]
    side = math.isqrt(found["tokens"])
    patches = "" if found["patches"] is None else f", {found['patches']:g} patches per image"

    def row(label: str, value: str, ratio: float | None = None, note: str = "") -> str:
        return f"{label:<52}{value:>14}{f'{ratio:.2f}x' if ratio else '':>8}  {note}".rstrip()

    def gmacs(label: str, key: str) -> str:
        return row(label, f"{sampling[key]:.2f} G", ratios and ratios["sampling"][key])

    def cache(label: str, key: str) -> str:
        return row(label, f"{sampling[key] / 2**20:.2f} MiB", ratios and ratios["sampling"][key])

    printed = paper["forward_gmacs"]
    lines = [
        f"{found['variant']} at {found['resolution']} x {found['resolution']}: {side} x {side} tokens{patches}",
        "multiply-accumulates (MACs) and bytes are of one image"
        + (f"; x = times {found['against']}" if ratios else ""),
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
