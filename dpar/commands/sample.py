"""Draws images from a trained model: `dpar sample --checkpoint DIR --labels 3,7 --n 16 --cfg 2.0 --out grid.png`."""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from dpar.data.classes import Classes
from dpar.data.decoding import SUFFIXES
from dpar.data.sources.source import enumerated
from dpar.device import default_device
from dpar.errors import InputError
from dpar.files import check_spared, write_bytes
from dpar.generator import Origin, find_network, find_origin
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import CHOICES, DrawSettings
from dpar.sampling.networks import Networks, load_networks
from dpar.sampling.picture import contact_sheet
from dpar.sampling.request import Request
from dpar.weights import model_config
from dpar.workflow.options import COUNT, SEED, Parser, limited

COLUMNS = 8  # of the picture
IMAGES, MOST = 16, 10_000  # drawn by default, and at most: a picture that is to be looked at


def _shares(text: str) -> tuple[float, float]:
    first, last = map(float, text.split(","))
    return first, last


_shares.__name__ = "pair of shares"


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar sample", description=__doc__)
    flags.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="model folder, DPAR or LlamaGen")
    flags.add_argument(
        "--labels",
        required=True,
        metavar="C[,C...]",
        help='classes to draw, by name or number: "tulips,roses", 0,3, 0-9 or all',
    )
    flags.add_argument(
        "--n",
        type=COUNT,
        help="images in all, shared evenly by the labels (default: 16, or one each if there are more)",
    )
    flags.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture, a line per label")
    flags.add_argument("--image", type=Path, metavar="FILE", help="an image to begin with; the model draws the rest")
    flags.add_argument(
        "--keep-rows", type=COUNT, metavar="R", help="rows of tokens of --image that are kept, from the top"
    )
    _add_drawing(flags)
    flags.add_argument("--seed", type=SEED, default=0, help="image i of a seed is always the same (default: 0)")
    flags.add_argument(
        "--threshold", type=float, metavar="NATS", help="E_Th (default: the one of training, or the gate's like it)"
    )
    flags.add_argument("--max-length", type=COUNT, metavar="TOKENS", help="P_max (default: the one of training)")
    flags.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the model")
    flags.add_argument(
        "--compile",
        action="store_true",
        help="with PyTorch's compiler, which takes minutes for large models: for many images",
    )
    where = "folder (default: looked for in the checkpoint, and next to the models of its results)"
    places = flags.add_mutually_exclusive_group()
    places.add_argument("--entropy-model", type=Path, metavar="DIR", help=where)
    places.add_argument(
        "--gate",
        type=Path,
        metavar="NAME",
        help="a gate of the experiment, or its folder, that places the patches instead",
    )
    flags.add_argument("--tokenizer", type=Path, metavar="DIR", help=where)
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def _add_drawing(flags: Parser) -> None:
    """Adds the flags that say how tokens are drawn."""
    flags.add_argument("--cfg", type=float, default=2.0, metavar="S", help="guidance scale; 1 = none (default: 2)")
    flags.add_argument(
        "--cfg-interval",
        type=_shares,
        default=(0.0, 1.0),
        metavar="A,B",
        help="guide from share A of the sequence to share B alone (default: 0,1)",
    )
    flags.add_argument(
        "--temperature",
        type=limited(float, *CHOICES["temperature"]),
        default=1.0,
        help="divides the logits (default: 1)",
    )
    flags.add_argument(
        "--top-k",
        type=limited(int, *CHOICES["top_k"]),
        default=0,
        help="draw from the K likeliest codes (default: 0, all)",
    )
    flags.add_argument(
        "--top-p",
        type=limited(float, *CHOICES["top_p"]),
        default=1.0,
        help="draw from the likeliest codes of this probability",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the picture and says what was drawn.

    Raises:
        InputError: a flag or a label is out of range, or a network is missing or of another experiment.
    """
    args = parser().parse_args(argv)
    config = model_config(args.checkpoint)
    classes = Classes.of_model(args.checkpoint, config)
    chosen = classes.labels(args.labels)
    args.n = max(IMAGES, len(chosen)) if args.n is None else args.n
    _check(args, chosen)
    settings = DrawSettings(args.cfg, args.cfg_interval, args.temperature, args.top_k, args.top_p, args.compile)
    given = {name: getattr(args, name) for name in ("threshold", "max_length", "gate", "entropy_model")}
    origin = find_origin(args.checkpoint, **given)
    networks = load_networks(
        args.checkpoint,
        origin.boundary_network,
        args.tokenizer or find_network(args.checkpoint, "tokenizer"),
        gate=origin.gate,
        precision=args.precision,
        device=default_device(),
    )
    start = time.monotonic()
    request = Request.shared(chosen, args.n, args.seed).beginning(_beginning(args, networks))
    labels, drawn = request.labels, ImageSampler(networks, origin.rule, settings).images(request)
    seconds = time.monotonic() - start
    write_bytes(args.out, contact_sheet(_lines(drawn.images, labels)))
    found = _found(args, networks, origin, labels, drawn.patches, seconds)
    found["classes"] = [classes.title(label) for label in labels.tolist()]
    if args.json:
        print(json.dumps(found))
        return
    print(
        f"{args.out}: {args.n} images of {_said(classes, chosen)} in {seconds:.1f} s "
        f"({found['images_per_s']:.2f} per second), {drawn.patches.mean():.1f} of {networks.model.config.tokens} steps "
        "per image"
    )


def _beginning(args: argparse.Namespace, networks: Networks) -> Int[Tensor, " n"] | None:
    """The tokens of the rows of --image that are kept.

    Raises:
        InputError: it cannot be read, or has no such rows.
    """
    path = args.image
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"--image {path} is {'no file' if path.exists() else 'not there'}; give the file of an image")
    try:
        return networks.beginning(path.read_bytes(), args.keep_rows)
    except OSError as error:
        raise InputError(f"--image {path}: it cannot be read ({error.strerror}); give the file of an image") from None
    except InputError as error:
        raise InputError(f"--image {path}: {error}") from None


def _lines(
    images: UInt8[np.ndarray, "N side side 3"], labels: Int[np.ndarray, " N"]
) -> list[UInt8[np.ndarray, "_ side side 3"]]:
    """The lines of the picture: those of a label follow each other."""
    return [
        group[first : first + COLUMNS]
        for group in np.split(images, np.flatnonzero(np.diff(labels)) + 1)
        for first in range(0, len(group), COLUMNS)
    ]


def _found(
    args: argparse.Namespace,
    networks: Networks,
    origin: Origin,
    labels: Int[np.ndarray, " N"],
    patches: Int[np.ndarray, " N"],
    seconds: float,
) -> dict[str, Any]:
    """The images and their conditions, for JSON."""
    return {
        "picture": str(args.out),
        "labels": labels.tolist(),
        "patches": patches.tolist(),
        "mean_patch_length": float((networks.model.config.tokens / patches).mean()),
        "images_per_s": args.n / seconds,
        "seed": args.seed,
        "cfg_scale": args.cfg,
        "cfg_interval": args.cfg_interval,
        "image": args.image and str(args.image),
        "keep_rows": args.keep_rows,
        "threshold": origin.rule and origin.rule.threshold,
        "gate": origin.gate,
        "entropy_precision": networks.entropy_precision if networks.entropy_model else None,
        "step": networks.provenance.get("step"),
        "networks": networks.digests,
    }


def _said(classes: Classes, chosen: Sequence[int]) -> str:
    """The classes that were drawn, in words: by name and number, where they have names."""
    if classes.names is None:
        return f"classes {enumerated(list(map(str, chosen)))}"
    return enumerated([f"{classes.title(label)} ({label})" for label in chosen])


def _check(args: argparse.Namespace, labels: Sequence[int]) -> None:
    allowed = {
        "n": (
            len(labels) <= args.n <= MOST,
            f"at least one image for each of the {len(labels)} labels, and at most {MOST:,}: `dpar run` draws large "
            "sets, and `dpar.Generator` any number",
        ),
        "threshold": (args.threshold is None or not math.isnan(args.threshold), "a number of nats"),
    }
    if (args.image is None) != (args.keep_rows is None):
        raise InputError("--image and --keep-rows go together: the image, and how many of its rows of tokens are kept")
    if args.out.is_dir():
        raise InputError(f"--out {args.out} is a folder; give the name of the picture to write, such as grid.png")
    if (suffix := args.out.suffix.lower()) != ".png" and suffix in SUFFIXES:
        raise InputError(f"--out {args.out}: a PNG is written, expected a name that ends in .png, not {suffix}")
    if args.image is not None:
        check_spared(args.out, args.image)
    for name, (fits, expected) in allowed.items():
        if not fits:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected {expected}")
