"""Measures a tokenizer on held-out images and shows some next to their reconstructions."""

import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dpar.data.classes import Classes
from dpar.data.crops import center_crop, resized, to_model_input, to_uint8
from dpar.data.images import ImageIndex
from dpar.data.workers import cores, mapped, reported
from dpar.device import default_device, full_float32
from dpar.errors import run_command
from dpar.evaluation.comparison import distance_name
from dpar.evaluation.features import Extractor, open_extractor
from dpar.evaluation.frechet import Moments, frechet_distance
from dpar.files import write_bytes, write_json
from dpar.sampling.picture import class_rows
from dpar.tokenizer.autoencoder import VQAutoencoder, to_bytes
from dpar.tokenizer.fidelity import codebook_use, perplexity, psnr, ssim
from dpar.tokenizer.fit import check_fit
from dpar.tokenizer.picture import side_by_side
from dpar.weights import load_model, model_config
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

PIXELS = {"cpu": 2**18, "cuda": 2**22}  # encoded at a time
SHOWN_CLASSES, SHOWN_EACH, COLUMNS = 8, 2, 8

STAGE = Stage(
    "evaluate_tokenizer",
    __doc__,
    flag("--tokenizer", "folder of the tokenizer"),
    flag("--index", "of the held-out images"),
    flag("--extractor", "classifier's folder, or a file"),
    flag("--report", "the numbers, JSON"),
    flag("--picture", "originals over reconstructions, PNG"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the tokenizer or the index does not fit the experiment.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    side = experiment.images.resolution
    with run.job(
        inputs=jobs.tokenizer(args.tokenizer) + jobs.index("val", args.index) + jobs.extractor(args.extractor),
        outputs=[args.report, args.picture],
    ) as job:
        index = ImageIndex.load(args.index)
        device = default_device()
        tokenizer = load_model(args.tokenizer, "tokenizer", device)
        check_fit(experiment, args.index, index, args.tokenizer, tokenizer)
        extractor = open_extractor(args.extractor, device).first(experiment.evaluation.dimensions)
        chosen = np.concatenate(class_rows(index.labels, SHOWN_EACH, SHOWN_CLASSES))
        measured = measure(index, side, tokenizer, extractor, set(chosen), device)
        tokens = side**2 // tokenizer.config.downsample**2
        results = measured.numbers | {"bits_per_pixel": tokens * np.log2(tokenizer.config.vocab_size) / side**2}
        metric, results["reconstruction_distance"] = reconstruction_distance(extractor, *measured.moments)
        conditions = {
            "images": len(index),
            "index": index.digest,
            "resolution": side,
            "crop": "centre",
            "tokens": tokens,
            "vocab_size": tokenizer.config.vocab_size,
            "tokenizer": model_config(args.tokenizer)["sha256"],
            "extractor_sha256": extractor.sha256,
        }
        write_json(args.report, {**results, "metric": metric, "conditions": conditions})
        named = Classes.of_images(experiment.images, index)
        captions = [named.title(int(index.labels[i])) for i in chosen]
        write_bytes(args.picture, side_by_side([measured.pairs[i] for i in chosen], captions, COLUMNS))
        job.summary({f"eval/{name}": value for name, value in results.items() if value is not None})
        job.image(args.picture, key="reconstructions", step=0)
        print(f"PSNR {results['psnr']:.2f} dB, SSIM {results['ssim']:.3f} on {len(index)} images", file=sys.stderr)


@dataclass(frozen=True)
class Measured:
    """Reconstructions of a set of images, compared with the originals.

    Attributes:
        numbers: their fidelity and the use of the codebook, for JSON.
        moments: of the features of originals and reconstructions.
        pairs: original and reconstruction of the images that are shown, by their number.
    """

    numbers: dict[str, Any]
    moments: tuple[Moments, Moments]
    pairs: dict[int, tuple[UInt8[np.ndarray, "R R 3"], UInt8[np.ndarray, "R R 3"]]]


@torch.inference_mode()
def measure(
    index: ImageIndex,
    side: int,
    tokenizer: VQAutoencoder,
    extractor: Extractor,
    chosen: Container[int],
    device: torch.device,
) -> Measured:
    """The reconstructions of all images at `side` pixels, measured, and those of the `chosen` ones to be shown."""
    moments, pairs = (Moments(), Moments()), {}
    counts = torch.zeros(tokenizer.config.vocab_size, dtype=torch.long)
    decibels, similarities = [], []
    with full_float32():
        for numbers, originals in _batches(index, side, max(1, PIXELS[device.type] // side**2)):
            originals = originals.to(device)
            codes = tokenizer.encode(to_model_input(originals))
            others = to_bytes(tokenizer.decode(codes))
            counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
            decibels.append(psnr(originals, others).cpu())
            similarities.append(ssim(originals, others).cpu())
            for which, images in zip(moments, (originals, others), strict=True):
                which.add(extractor.forward(resized(images, extractor.resolution or side))[0])
            for i in filter(chosen.__contains__, numbers):
                original, other = (x[i - numbers[0]].permute(1, 2, 0).cpu().numpy() for x in (originals, others))
                pairs[i] = original, other
    all_decibels = torch.cat(decibels).double()
    fidelity = {
        "psnr": all_decibels.mean().item(),
        "psnr_std": all_decibels.std(correction=0).item(),
        "ssim": torch.cat(similarities).mean().item(),
        "codebook_use": codebook_use(counts),
        "codebook_perplexity": perplexity(counts),
    }
    return Measured(fidelity, moments, pairs)


def reconstruction_distance(
    extractor: Extractor, originals: Moments, reconstructions: Moments
) -> tuple[str, float | None]:
    """The name and value of the distance between images and what the tokenizer gives back; rFID with Inception.

    Null where the images are no more than the features' dimensions.
    """
    dims = originals.dims
    name = f"r{distance_name(extractor.name, dims, whole=extractor.dimensions is None)}"
    if originals.count <= dims:
        print(f"warning: {originals.count} images are too few for a {name}; not measured", file=sys.stderr)
        return name, None
    return name, frechet_distance(originals.gaussian(), reconstructions.gaussian())


def _batches(index: ImageIndex, side: int, size: int) -> Iterator[tuple[range, UInt8[Tensor, "B 3 R R"]]]:
    """The centre squares of all images in order, `size` at a time, with their numbers."""

    def load(numbers: range) -> UInt8[Tensor, "B 3 R R"]:
        return torch.stack([to_uint8(center_crop(index.read(i), side)) for i in numbers])

    batches = [range(i, min(i + size, len(index))) for i in range(0, len(index), size)]
    loaded = mapped(load, batches, threads=cores(), ahead=4)
    return zip(batches, reported(loaded, len(index), "reconstructed", size=size), strict=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
