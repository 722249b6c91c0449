"""Where the patches of stored entropies begin and how many there are; for several settings at once, how many."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpar.data.arrays import foreign, read_npy
from dpar.errors import InputError
from dpar.experiment.settings import VARIANTS, Transformer
from dpar.model.dpar import DPARConfig
from dpar.model.flops import forward_gmacs, training_gmacs
from dpar.model.variants import model_config
from dpar.patches.calibration import calibrate, calibrate_cost
from dpar.patches.counts import PatchCounts, simulate
from dpar.patches.rule import patch_starts, static_starts
from dpar.workflow.options import COUNT, Parser

SHOWN = 4
"""Images whose patches the table for people draws."""


def _list_of(number: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [None if part.strip() == "none" and number is int else number(part) for part in text.split(",")]

    parse.__name__ = f"list of {number.__name__}"
    return parse


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar patchify", description=__doc__)
    flags.add_argument("entropies", metavar="ENTROPIES.npy", help="array (images, tokens) in nats, raster order")
    which = flags.add_argument_group("which patches (give one of --threshold, --p-avg, --gmacs and --static)")
    which.add_argument("--threshold", type=_list_of(float), metavar="X[,X...]", help="E_Th in nats")
    which.add_argument("--p-avg", type=float, metavar="P", help="calibrate E_Th to this mean patch length")
    which.add_argument("--gmacs", type=float, metavar="G", help="calibrate E_Th to this forward cost of --model")
    which.add_argument("--static", type=float, metavar="P", help="patches of this length, whatever the entropies are")
    which.add_argument(
        "--max-length", type=_list_of(int), metavar="N[,N...]", default=[None], help="P_max in tokens (default: none)"
    )
    which.add_argument("--grid-width", type=COUNT, required=True, metavar="W", help="tokens in a row of the image")
    which.add_argument("--no-row-boundary", action="store_true", help="patches may go on into the next row")
    flags.add_argument("--model", metavar="VARIANT", help="say what the patches cost this DPAR (Table 8's count)")
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Prints starts, M and P_avg; of several thresholds or maximum lengths, the distribution of M of each pair.

    Raises:
        InputError: the file cannot be used, or the flags contradict each other.
    """
    args = parser().parse_args(argv)
    ways = [name for name in ("threshold", "p_avg", "gmacs", "static") if getattr(args, name) is not None]
    if len(ways) != 1:
        given = " and ".join(f"--{name.replace('_', '-')}" for name in ways) or "none of them"
        raise InputError(f"give one of --threshold, --p-avg, --gmacs and --static; found {given}")
    if args.static is not None and (args.max_length != [None] or args.no_row_boundary):
        raise InputError("static patches know neither --max-length nor --no-row-boundary; leave these away")
    entropy = read_entropies(args.entropies)
    costs = model_costs(args.model, entropy.shape[1], args.grid_width) if args.model else None
    if args.gmacs is not None and costs is None:
        raise InputError("--gmacs is the cost of a model: name it with --model, such as --model DPAR-L")
    if args.static is None and max(len(args.threshold or [0]), len(args.max_length)) > 1:
        cells = simulated_cells(entropy, args, costs)
        print(json.dumps({"cells": cells}, indent=2) if args.json else cells_table(cells))
        return
    starts, threshold = _starts(entropy, args, costs)
    counts = PatchCounts.of(starts)
    found = {
        "threshold": _finite(threshold),
        "max_length": None if args.static is not None else args.max_length[0],
        "static": args.static,
        **_summary(counts, costs),
        "M": starts.sum(1).tolist(),
        "starts": starts.tolist(),
    }
    print(json.dumps(found) if args.json else starts_table(found, starts, args.grid_width))


def read_entropies(path: str) -> np.ndarray:
    """The array in a .npy file, mapped rather than read.

    Raises:
        InputError: there is no such file, or it holds no array of images times tokens, or negative numbers.
    """
    what = ".npy file of entropies, one row of numbers an image"
    cure = "save the entropies alone with numpy.save; those in shards are its column `entropy`"
    with foreign(path, what, cure):
        entropy = read_npy(path, mapped=True)
    if entropy.ndim != 2 or 0 in entropy.shape:
        raise InputError(f"{path} has the shape {entropy.shape}; expected (images, tokens), at least one of each")
    if entropy.dtype.kind == "f" and (least := entropy.min()) < -1e-3:
        raise InputError(
            f"{path} holds {least:g}, expected entropies, which are 0 or more: are these log probabilities?"
        )
    return entropy


def model_costs(variant: str, tokens: int, grid_width: int) -> Callable[[np.ndarray], tuple[Any, Any]]:
    """Forward (Table 8) and training GMACs per image of a DPAR by name, as functions of the number of patches.

    Raises:
        InputError: `variant` is no DPAR, or the tokens are not made of rows.
    """
    if variant not in VARIANTS or VARIANTS[variant]["architecture"] != "dpar":
        known = ", ".join(name for name, row in VARIANTS.items() if row["architecture"] == "dpar")
        raise InputError(f"--model {variant} is no variant with patches; variants are {known}")
    if tokens % grid_width:
        raise InputError(f"{tokens} tokens per image are not whole rows of {grid_width}; check --grid-width")
    config = model_config(
        Transformer.model_validate({"variant": variant}),
        vocab_size=16384,
        grid=(tokens // grid_width, grid_width),
        num_classes=1000,
    )
    assert isinstance(config, DPARConfig)
    return lambda patches: (forward_gmacs(config, patches), training_gmacs(config, patches))


def simulated_cells(entropy: np.ndarray, args: argparse.Namespace, costs: Any) -> list[dict[str, Any]]:
    """Patch statistics for each pair of threshold and maximum length, one dictionary per pair."""
    rule = {"grid_width": args.grid_width, "row_boundary": not args.no_row_boundary}
    if args.threshold is None:
        pairs = [(_threshold(entropy, max_length, args, costs), max_length) for max_length in args.max_length]
    else:
        pairs = [(threshold, max_length) for threshold in args.threshold for max_length in args.max_length]
    cells = []
    for threshold in dict.fromkeys(threshold for threshold, _ in pairs):
        lengths = [max_length for at, max_length in pairs if at == threshold]
        counted = simulate(entropy, thresholds=[threshold], max_lengths=lengths, **rule)
        cells += [
            {"threshold": _finite(threshold), "max_length": length, **_summary(counts, costs)}
            for (_, length), counts in counted.items()
        ]
    return cells


def _threshold(entropy: np.ndarray, max_length: int | None, args: argparse.Namespace, costs: Any) -> float:
    rule = {"max_length": max_length, "grid_width": args.grid_width, "row_boundary": not args.no_row_boundary}
    if args.threshold is not None:
        return args.threshold[0]
    if args.p_avg is not None:
        return calibrate(entropy, args.p_avg, **rule)
    return calibrate_cost(entropy, args.gmacs, cost=lambda patches: costs(patches)[0], **rule)


def _starts(entropy: np.ndarray, args: argparse.Namespace, costs: Any) -> tuple[np.ndarray, float | None]:
    if args.static is None:
        threshold = _threshold(entropy, args.max_length[0], args, costs)
        starts = patch_starts(
            entropy,
            threshold=threshold,
            max_length=args.max_length[0],
            grid_width=args.grid_width,
            row_boundary=not args.no_row_boundary,
        )
        return starts, threshold
    images, tokens = entropy.shape
    if tokens % args.grid_width:
        raise InputError(f"{tokens} tokens per image are not whole rows of {args.grid_width}; check --grid-width")
    return static_starts(images, tokens, args.static).numpy(), None


def _finite(number: float | None) -> float | str | None:
    """The number, or its name where JSON has none."""
    return number if number is None or math.isfinite(number) else str(number)


def _summary(counts: PatchCounts, costs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "images": counts.images,
        "tokens": counts.tokens,
        "P_avg": counts.mean_patch_length,
        "M_mean": counts.mean,
        "M_histogram": counts.histogram.tolist(),
        "M_percentiles": {str(q): counts.percentile(q) for q in (0, 5, 25, 50, 75, 95, 100)},
    }
    if costs is not None:
        forward, training = costs(np.arange(counts.tokens + 1.0))
        found |= {"forward_gmacs": counts.expectation(forward), "training_gmacs": counts.expectation(training)}
    return found


def cells_table(cells: list[dict[str, Any]]) -> str:
    """The pairs of threshold and maximum length as a table for people."""
    costly = "forward_gmacs" in cells[0]
    header = f"{'E_Th (nats)':>12}{'P_max':>7}{'P_avg':>8}{'M':>8}{'M: 5 %':>8}{'50 %':>6}{'95 %':>6}"
    lines = [header + (f"{'GMACs':>9}{'training':>10}" if costly else "")]
    for cell in cells:
        share, length = cell["M_percentiles"], cell["max_length"]
        line = f"{cell['threshold']:>12.6g}" if isinstance(cell["threshold"], float) else f"{cell['threshold']:>12}"
        line += f"{'none' if length is None else length:>7}{cell['P_avg']:>8.4f}{cell['M_mean']:>8.2f}"
        line += f"{share['5']:>8}{share['50']:>6}{share['95']:>6}"
        if costly:
            line += f"{cell['forward_gmacs']:>9.2f}{cell['training_gmacs']:>10.2f}"
        lines.append(line)
    return "\n".join([*lines, f"{cells[0]['images']} images of {cells[0]['tokens']} tokens"])


def starts_table(found: dict[str, Any], starts: np.ndarray, grid_width: int) -> str:
    """Starts, M and P_avg for people: the first images as pictures, `#` opens a patch and `.` goes on."""
    share = found["M_percentiles"]
    rule = (
        f"static patches of {found['static']:g} tokens"
        if found["static"] is not None
        else f"E_Th {found['threshold']} nats, P_max {found['max_length'] or 'none'}"
    )
    lines = [
        f"{found['images']} images of {found['tokens']} tokens; {rule}",
        f"P_avg {found['P_avg']:.4f} tokens",
        f"M     {found['M_mean']:.2f} patches in the mean, from {share['0']} to {share['100']}, median {share['50']}",
    ]
    if "forward_gmacs" in found:
        lines.append(f"cost  {found['forward_gmacs']:.2f} GMACs forward, {found['training_gmacs']:.2f} a training step")
    for image, patches in enumerate(found["M"][:SHOWN]):
        lines += ["", f"image {image}: M = {patches}"]
        lines += ["".join("#" if start else "." for start in row) for row in starts[image].reshape(-1, grid_width)]
    if found["images"] > SHOWN:
        lines += ["", f"... and {found['images'] - SHOWN} more images; --json prints all"]
    return "\n".join(lines)
