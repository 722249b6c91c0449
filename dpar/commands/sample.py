"""Draws images from a trained model: `dpar sample --checkpoint DIR --labels 3,7 --n 16 --cfg 2.0 --out grid.png`."""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dpar.config import Patchify
from dpar.data.crops import center_crop
from dpar.data.decoding import decode
from dpar.device import default_device
from dpar.errors import InputError
from dpar.files import write_bytes
from dpar.generator import beside
from dpar.sampling.guidance import CHOICES
from dpar.sampling.memory import in_pieces
from dpar.sampling.networks import gate_threshold, load_networks
from dpar.sampling.noise import image_seed
from dpar.sampling.picture import contact_sheet
from dpar.weights import CONFIG, model_config

COLUMNS = 8  # of the picture
BATCH = 32  # images


def _labels(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _shares(text: str) -> tuple[float, float]:
    first, last = map(float, text.split(","))
    return first, last


_labels.__name__ = "list of classes"  # as argparse calls it
_shares.__name__ = "pair of shares"


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = argparse.ArgumentParser(prog="dpar sample", description=__doc__)
    flags.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="model folder, DPAR or LlamaGen")
    flags.add_argument("--labels", type=_labels, required=True, metavar="C[,C...]", help="classes to draw")
    flags.add_argument("--n", type=int, default=16, help="images in all, shared evenly by the labels (default: 16)")
    flags.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture, a line a label")
    flags.add_argument("--image", type=Path, metavar="FILE", help="a picture to begin with; the model draws the rest")
    flags.add_argument(
        "--keep-rows", type=int, metavar="R", help="rows of tokens of --image that are kept, from the top"
    )
    flags.add_argument("--cfg", type=float, default=2.0, metavar="S", help="guidance scale; 1 = none (default: 2)")
    flags.add_argument(
        "--cfg-interval",
        type=_shares,
        default=(0.0, 1.0),
        metavar="A,B",
        help="guide from share A of the sequence to share B alone (default: 0,1)",
    )
    flags.add_argument("--temperature", type=float, default=1.0, help="divides the logits (default: 1)")
    flags.add_argument("--top-k", type=int, default=0, help="draw from the K likeliest codes (default: 0, all)")
    flags.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest codes of this probability")
    flags.add_argument("--seed", type=int, default=0, help="image i of a seed is always the same (default: 0)")
    flags.add_argument(
        "--threshold", type=float, metavar="NATS", help="E_Th (default: the one of training, or the gate's like it)"
    )
    flags.add_argument("--max-length", type=int, metavar="TOKENS", help="P_max (default: the one of training)")
    flags.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the model")
    flags.add_argument(
        "--compile",
        action="store_true",
        help="with PyTorch's compiler, which takes minutes for large models: for many images",
    )
    where = "folder (default: looked for in the checkpoint, and beside the models of its results)"
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


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the picture and says what was drawn.

    Raises:
        InputError: a flag or a label is out of range, or a network is missing or of another experiment.
    """
    args = parser().parse_args(argv)
    _check(args)
    provenance = model_config(args.checkpoint)["provenance"]
    patchify, threshold = _patches(args, provenance)
    folder = gate = None
    if patchify is None or not patchify.is_dynamic:
        if args.gate:
            raise InputError(f"--gate {args.gate}: the patches of {args.checkpoint}, if any, depend on no entropy")
    elif args.gate:
        folder = args.gate if (args.gate / CONFIG).exists() else beside(args.checkpoint, f"gates/{args.gate}")
        gate = model_config(folder)["provenance"].get("gate", folder.name)
        threshold = gate_threshold(folder, patchify) if args.threshold is None else threshold
    else:
        folder = args.entropy_model or beside(args.checkpoint, "entropy_model")
    networks = load_networks(
        args.checkpoint,
        folder,
        args.tokenizer or beside(args.checkpoint, "tokenizer"),
        gate=gate,
        precision=args.precision,
        device=default_device(),
    )
    start = time.monotonic()
    labels = np.array(args.labels)[np.sort(np.arange(args.n) % len(args.labels))]
    seeds = np.array([image_seed(args.seed, image) for image in range(args.n)])
    rows, columns = networks.model.config.grid
    side = rows * networks.tokenizer.config.downsample
    prefix = None
    if args.image is not None:
        if not 1 <= args.keep_rows < rows:
            raise InputError(f"--keep-rows {args.keep_rows}: an image has {rows} rows of tokens; keep 1 to {rows - 1}")
        prefix = networks.tokens(_picture(args.image, side)[None])[:, : args.keep_rows * columns]

    def draw(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        result = networks.draw(
            labels[first:last],
            seeds[first:last],
            prefix=None if prefix is None else prefix.expand(last - first, -1),
            patchify=patchify,
            threshold=threshold,
            cfg_scale=args.cfg,
            cfg_interval=args.cfg_interval,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            compile=args.compile,
        )
        return networks.pixels(result.tokens, side), result.starts.sum(1).cpu().numpy()

    parts = in_pieces(draw, 0, args.n, BATCH)
    images, patches = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    seconds = time.monotonic() - start
    lines = [
        group[first : first + COLUMNS]
        for group in np.split(images, np.flatnonzero(np.diff(labels)) + 1)
        for first in range(0, len(group), COLUMNS)
    ]
    write_bytes(args.out, contact_sheet(lines))
    found = {
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
        "threshold": threshold,
        "gate": gate,
        "step": provenance.get("step"),
        "networks": networks.digests,
    }
    if args.json:
        print(json.dumps(found))
        return
    print(
        f"{args.out}: {args.n} images of classes {', '.join(map(str, args.labels))} in {seconds:.1f} s "
        f"({found['images_per_s']:.2f} a second), {patches.mean():.1f} of {networks.model.config.tokens} steps an image"
    )


def _check(args: argparse.Namespace) -> None:
    allowed = {
        "n": (args.n >= len(args.labels), f"at least one image for each of the {len(args.labels)} labels"),
        **{name: (least < getattr(args, name) <= most, word) for name, (least, most, word) in CHOICES.items()},
        "threshold": (args.threshold is None or not math.isnan(args.threshold), "a number of nats"),
        "max_length": (args.max_length is None or args.max_length > 0, "at least one token"),
    }
    if (args.image is None) != (args.keep_rows is None):
        raise InputError(
            "--image and --keep-rows go together: the picture, and how many of its rows of tokens are kept"
        )
    for name, (fits, expected) in allowed.items():
        if not fits:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected {expected}")


def _patches(args: argparse.Namespace, provenance: dict[str, Any]) -> tuple[Patchify | None, float | None]:
    """Where patches begin: as in training, but for the flags."""
    given = {name: getattr(args, name) for name in ("threshold", "max_length") if getattr(args, name) is not None}
    if provenance.get("patchify") is None:
        if given:
            raise InputError(f"--{next(iter(given)).replace('_', '-')}: {args.checkpoint} is a model without patches")
        return None, None
    patchify = Patchify.model_validate(provenance["patchify"])
    if given and not patchify.is_dynamic:
        raise InputError(f"--{next(iter(given)).replace('_', '-')}: {args.checkpoint} was trained on static patches")
    if "max_length" in given:
        patchify = patchify.model_copy(update={"max_length": args.max_length})
    return patchify, given.get("threshold", provenance["threshold"])


def _picture(path: Path, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The central square of the image in a file, decoded as for training.

    Raises:
        InputError: it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"--image {path} is {'no file' if path.exists() else 'not there'}; give the file of an image")
    try:
        return np.array(center_crop(decode(path.read_bytes()), side))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--image {path} cannot be read ({reason}); give the whole file of an 8-bit image") from None
