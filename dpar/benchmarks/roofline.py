"""Time per token of DPAR and LlamaGen on a GPU by a roofline, without a GPU: kernels and bytes counted in the sampler.

Each kernel takes the longer of the time to move its bytes and to multiply. These are bounds, not measurements. In a
captured graph, kernels follow each other without a gap; `--shortest-kernel 2` says what a least time of 2 microseconds
per kernel would change. Launched one by one, a token takes at least its launches.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

from dpar.benchmarks.pairs import table1
from dpar.errors import InputError
from dpar.evaluation.roofline import CARDS, TERMS, Card, Drawing, token_cost
from dpar.experiment.settings import VARIANTS, EntropyPrecision
from dpar.model.entropy_regressor import EntropyRegressorConfig
from dpar.model.llamagen import LlamaGenConfig
from dpar.paper import DOWNSAMPLE, PAPER_MAX_LENGTH, PAPER_PATCHES
from dpar.patches.rule import PatchRule
from dpar.workflow.options import COUNT, SIDE

GATES = ("entropy-model", "small", "distilled", "none")
QUARTER = 3  # layers of the gates of config/imagenet256.yaml
LIKELY_SHORTEST = 2.0
"""Microseconds that a small kernel of a captured graph takes on recent cards, by experience; not measured here."""

PEAKS = {
    "bfloat16": "1e12 dense operations per second in bfloat16",
    "tf32": "the same in TF32",
    "float32": "the same in float32, without tensor cores",
    "bandwidth": "1e12 bytes per second of memory",
    "compute_share": "of the operations that kernels reach",
    "bandwidth_share": "of the bandwidth that kernels reach",
    "launch": "microseconds of the host per kernel",
    "shortest_kernel": "microseconds that a kernel takes at least",
}


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    sizes = [name.removeprefix("DPAR-") for name in VARIANTS if name.startswith("DPAR-")]
    flags = argparse.ArgumentParser(prog="dpar bench roofline", description=__doc__)
    flags.add_argument("--size", choices=sizes, default="XL", help="of the pair, in Table 1 (default: XL)")
    flags.add_argument("--resolution", type=SIDE, default=256, help="pixels (default: 256)")
    flags.add_argument("--batches", type=COUNT, nargs="+", default=[32, 128, 256], metavar="IMAGES", help="at a time")
    flags.add_argument(
        "--gate", choices=GATES, default="entropy-model",
        help="what places the boundaries: the entropy model, a gate of config/imagenet256.yaml, or static patches",
    )  # fmt: skip
    flags.add_argument(
        "--gate-precision",
        choices=get_args(EntropyPrecision),
        default="tf32",
        help="of what places them (default: tf32)",
    )
    flags.add_argument("--patches", type=float, help="mean per image (default: the paper's at this resolution)")
    flags.add_argument("--cfg", type=float, default=2.0, metavar="SCALE", help="of guidance; 1 is none (default: 2)")
    flags.add_argument("--plain-noise", action="store_true", help="noise by PyTorch's operations, not by one kernel")
    flags.add_argument("--card", choices=CARDS, default="H200", help="default: H200")
    for name, text in PEAKS.items():
        flags.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"{text}; instead of the card's")
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table.

    Raises:
        InputError: the number of patches is not known or impossible, or a peak is not above 0.
    """
    args = parser().parse_args(argv)
    own = {name: value for name in PEAKS if (value := getattr(args, name)) is not None}
    for name, value in own.items():
        if value < 0 or (value == 0 and name not in ("launch", "shortest_kernel")):
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number above 0")
    card = replace(CARDS[args.card], **own)
    (ours, theirs), patches = pair(args)
    found = {
        "rows": [row(ours, theirs, patches, batch, card) for batch in args.batches],
        "pair": [f"DPAR-{args.size}", f"LlamaGen-{args.size}"],
        "resolution": args.resolution,
        "gate": args.gate,
        "gate_precision": args.gate_precision,
        "patches": patches,
        "card": {"name": args.card} | asdict(card),
        "measured": False,
    }
    print(json.dumps(found, indent=2) if args.json else table(found))


def pair(args: argparse.Namespace) -> tuple[tuple[Drawing, Drawing], float]:
    """The two that are compared, and the mean patches per image.

    Raises:
        InputError: the resolution is not made of whole tokens, or the number of patches is not known or impossible.
    """
    if args.resolution < DOWNSAMPLE or args.resolution % DOWNSAMPLE:
        raise InputError(f"a resolution of {args.resolution} pixels is not a multiple of the tokenizer's {DOWNSAMPLE}")
    sizes = table1(args.size, args.resolution)
    tokens = sizes.dpar.tokens
    patches = PAPER_PATCHES.get(args.resolution) if args.patches is None else args.patches
    if patches is None:
        raise InputError(f"the paper counts patches at 256 and 384 pixels, not at {args.resolution}: give --patches")
    if not 1 <= patches <= tokens:
        raise InputError(f"an image of {tokens} tokens cannot have {patches:g} patches; give 1 to {tokens}")
    gate: LlamaGenConfig | None = sizes.entropy_model
    if args.gate == "small":
        gate = gate.model_copy(update={"layers": QUARTER})
    elif args.gate == "distilled":
        gate = EntropyRegressorConfig.model_validate(dict(gate) | {"layers": QUARTER})
    elif args.gate == "none":
        gate = None
    width = sizes.dpar.grid[1]
    static = None if gate else round(tokens / patches, 4)
    rule = PatchRule(width, None if static else 0.0, PAPER_MAX_LENGTH, static_length=static)
    theirs = Drawing(sizes.llamagen, guided=args.cfg not in (0, 1), fused_noise=not args.plain_noise)
    ours = replace(theirs, model=sizes.dpar, gate=gate, gate_precision=args.gate_precision, rule=rule)
    return (ours, theirs), patches


def row(ours: Drawing, theirs: Drawing, patches: float, batch: int, card: Card) -> dict[str, Any]:
    """Milliseconds per token of both in one batch size, and their ratio, for JSON."""
    own, other = token_cost(ours, batch, card, patches), token_cost(theirs, batch, card)
    launched = own.launched(card), other.launched(card)
    slower = replace(card, shortest_kernel=max(card.shortest_kernel, LIKELY_SHORTEST))
    likely = token_cost(theirs, batch, slower).captured / token_cost(ours, batch, slower, patches).captured
    tokens = ours.model.tokens
    return {
        "batch": batch,
        "dpar_ms": 1e3 * own.captured,
        "llamagen_ms": 1e3 * other.captured,
        "ratio": other.captured / own.captured,
        "ratio_with_short_kernels": likely,
        "bound_by": own.bound_by,
        "llamagen_bound_by": other.bound_by,
        "images_per_s": batch / (own.captured * tokens),
        "llamagen_images_per_s": batch / (other.captured * tokens),
        "dpar_terms_ms": {name: 1e3 * seconds for name, seconds in own.seconds.items()},
        "llamagen_terms_ms": {name: 1e3 * seconds for name, seconds in other.seconds.items()},
        "kernels": {"dpar": own.kernels, "llamagen": other.kernels},
        "launched": {
            "dpar_ms": 1e3 * launched[0],
            "llamagen_ms": 1e3 * launched[1],
            "ratio": launched[1] / launched[0],
            "bound_by": "launches" if launched[0] > own.captured else own.bound_by,
        },
    }


def table(found: dict[str, Any]) -> str:
    """The rows for people."""
    head = ["ms per token", *(f"B = {line['batch']}" for line in found["rows"])]
    lines = [
        f"{' and '.join(found['pair'])} at {found['resolution']} px, {found['patches']:g} patches per image; "
        f"boundaries: {found['gate']} in {found['gate_precision']}; {found['card']['name']}. Bounds, not measured.",
        "",
        _line(head),
    ]

    def numbers(title: str, of: Any, form: str = "{:.2f}") -> None:
        lines.append(_line([title, *(form.format(of(line)) for line in found["rows"])]))

    for model, key in zip(found["pair"], ("dpar", "llamagen"), strict=True):
        numbers(f"{model}, captured", lambda line, key=key: line[f"{key}_ms"])
        for term in TERMS:
            if any(line[f"{key}_terms_ms"][term] for line in found["rows"]):
                title = f"  {term.replace('_', ' ')}"
                numbers(title, lambda line, key=key, term=term: line[f"{key}_terms_ms"][term])
        numbers("  launched one by one", lambda line, key=key: line["launched"][f"{key}_ms"])
        numbers("  kernels per token", lambda line, key=key: line["kernels"][key], "{:.0f}")
    numbers("images per second over LlamaGen's, captured", lambda line: line["ratio"])
    numbers(f"  and no kernel under {LIKELY_SHORTEST:g} us", lambda line: line["ratio_with_short_kernels"])
    numbers("  launched one by one", lambda line: line["launched"]["ratio"])
    numbers("DPAR is bound by", lambda line: line["bound_by"].replace("_", " "), "{}")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return cells[0].ljust(44) + "".join(cell.rjust(18) for cell in cells[1:])
