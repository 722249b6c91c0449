"""Turns an official file of LlamaGen into a model folder: a tokenizer, a baseline to sample from, an entropy model."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpar.data.classes import imagenet_names
from dpar.errors import InputError
from dpar.experiment.settings import TOKENIZERS, VARIANTS, Autoencoder, Transformer
from dpar.files import sha256_file
from dpar.model.llamagen import LlamaGenConfig
from dpar.model.official import import_llamagen
from dpar.model.variants import model_config
from dpar.tokenizer.official import import_tokenizer
from dpar.weights import CONFIG, save_model
from dpar.workflow.options import SIDE, Parser

DOWNSAMPLE, VOCAB_SIZE = 16, 16384
"""Pixels a token and codes of the published transformers, which were all trained on VQ-16."""


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar convert", description=__doc__)
    flags.add_argument("file", type=Path, metavar="FILE", help="vq_ds16_c2i.pt, vq_ds8_c2i.pt, c2i_B_256.pt, ...")
    flags.add_argument("--variant", required=True, metavar="NAME", help=", ".join(_variants()))
    flags.add_argument("--resolution", type=SIDE, metavar="R", help="of a transformer: pixels, the side of its images")
    flags.add_argument("--sha256", metavar="HEX", help="what the file's bytes must have; FILE.sha256 is checked too")
    flags.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder, with safetensors and JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the folder and says how to go on.

    Raises:
        InputError: the variant is unknown, the resolution is missing or none, the folder holds a model already, or the
            file is not what it is said to be.
    """
    args = parser().parse_args(argv)
    if args.variant not in _variants():
        raise InputError(f"nobody published weights of {args.variant!r}; there are {', '.join(_variants())}")
    if (args.out / CONFIG).exists():
        raise InputError(f"{args.out} holds a model already; give --out a new folder, or delete that one")
    provenance: dict[str, Any] = {}
    if args.variant in TOKENIZERS:
        if args.resolution is not None:
            raise InputError(f"{args.variant} takes images of any size; leave --resolution away")
        model = import_tokenizer(args.file, Autoencoder(**TOKENIZERS[args.variant]), args.sha256)
        then = f"--tokenizer {args.out}"
    else:
        config = _transformer(args.variant, args.resolution)
        model = import_llamagen(args.file, config, args.sha256)
        provenance, then = {"grid": config.grid, "downsample": DOWNSAMPLE}, f"--checkpoint {args.out}"
        if model.config.num_classes == len(names := list(imagenet_names().values())):
            provenance["classes"] = names  # which these weights were trained on
    source = {"file": args.file.name, "sha256": sha256_file(args.file)}
    save_model(args.out, model, provenance | {"weights": source})
    tensors = len(model.state_dict())
    print(
        f"{args.out}: {args.variant}, {sum(p.numel() for p in model.parameters()):,} parameters in {tensors} tensors, "
        f"every one of {args.file.name} (SHA-256 {source['sha256']})\nnext: dpar sample {then} ..."
    )


def _variants() -> list[str]:
    """Names of the published weights of LlamaGen."""
    return [*TOKENIZERS, *(name for name, row in VARIANTS.items() if row["architecture"] == "llamagen")]


def _transformer(variant: str, resolution: int | None) -> LlamaGenConfig:
    if resolution is None or resolution < DOWNSAMPLE or resolution % DOWNSAMPLE:
        raise InputError(
            f"--resolution is {resolution}; give the pixels of the file's images, a multiple of {DOWNSAMPLE} "
            "(256 for c2i_B_256.pt)"
        )
    side = resolution // DOWNSAMPLE
    settings = Transformer.model_validate({"variant": variant})
    config = model_config(settings, vocab_size=VOCAB_SIZE, grid=(side, side), num_classes=None)
    assert isinstance(config, LlamaGenConfig)
    return config
