"""Measures how the Frechet distance orders real images that were made worse: how much its numbers can be trusted."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from torch import Tensor

from dpar import tracking
from dpar.data.crops import resized, to_model_input
from dpar.data.images import ImageIndex
from dpar.device import default_device, full_float32
from dpar.errors import InputError, run_command
from dpar.evaluation.comparison import gaussian_of, metric_name, shared_conditions
from dpar.evaluation.degradations import STRENGTHS, blurred, fewest_rows, noisy, replaced, rows_without_classes
from dpar.evaluation.features import Extractor, Features, extract, index_batches, load_features, open_extractor
from dpar.evaluation.frechet import fit_gaussian, frechet_distance
from dpar.experiment.settings import Experiment
from dpar.files import write_json, write_text
from dpar.report.tables import to_markdown, with_spread
from dpar.tokenizer.autoencoder import VQAutoencoder, to_bytes
from dpar.tokenizer.fit import check_fit
from dpar.weights import load_model
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

DRAWS = 3  # sets of images for each strength

STAGE = Stage(
    "measure_degradations",
    __doc__,
    flag("--index", "of the held-out images"),
    flag("--tokenizer", "folder of the tokenizer"),
    flag("--extractor", "classifier's folder, or a file"),
    flag("--reference", "npz of features of the reference"),
    flag("--output", "the numbers, JSON"),
    flag("--markdown", "the same for people"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: tokenizer, index or extractor do not fit the experiment or the reference, or images are too few.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    with run.job(
        inputs=[
            *jobs.index("val", args.index),
            *jobs.tokenizer(args.tokenizer),
            *jobs.extractor(args.extractor),
            *tracking.made_by(jobs.REFERENCE, args.reference),
        ],
        outputs=[args.output, args.markdown],
        params={"samples": experiment.sampling.num_images, "draws": DRAWS, "seed": experiment.seed},
    ) as job:
        reference, device = load_features(args.reference), default_device()
        worse = open_degrader(args, experiment, device, dims=reference.features.shape[1])
        extractor = open_same_extractor(args, reference, device).first(experiment.evaluation.dimensions)
        found = measure(distances(worse, extractor, reference, experiment.evaluation.resolution or worse.side))
        conditions = shared_conditions(experiment, reference) | {
            "samples": worse.size, "draws": DRAWS, "seed": experiment.seed, "held_out": worse.index.digest,
        }  # fmt: skip
        metric = metric_name(reference)
        write_json(args.output, {"metric": metric, **found, "conditions": conditions})
        write_text(args.markdown, readable(metric, found, worse.size))
        job.summary({f"ordered/{kind.replace(' ', '_')}": float(yes) for kind, yes in found["ordered"].items()})
        wrong = ", ".join(kind for kind, yes in found["ordered"].items() if not yes)
        print(f"{metric} orders all strengths" + (f" but those of {wrong}" if wrong else ""), file=sys.stderr)


class Degrader:
    """Sets of held-out images made worse; each depends on kind, strength and number of the draw alone.

    Args:
        index: the held-out images.
        side: pixels.
        tokenizer: through which tokens are replaced.
        size: images in a set.
        seed: of all draws.
    """

    def __init__(self, index: ImageIndex, side: int, tokenizer: VQAutoencoder, size: int, seed: int):
        self.index, self.side, self.tokenizer, self.size, self.seed = index, side, tokenizer, size, seed

    def __call__(self, kind: str, strength: float, draw: int) -> Iterator[UInt8[Tensor, "B 3 R R"]]:
        """A set, in batches; strength 0 leaves the images, but for what the tokenizer does to them, as they are.

        The same draw of another kind or strength has the same images, unless classes are missing.
        """
        generator = torch.Generator().manual_seed(self.seed * DRAWS + draw)
        gone = strength if kind == "missing classes" else 0.0
        rows = rows_without_classes(torch.from_numpy(self.index.labels), gone, self.size, generator)
        for images in index_batches(self.index, rows.numpy(), self.side):
            if kind == "replaced tokens":
                yield self._replaced(images, strength, generator)
            elif kind == "missing classes" or strength == 0:
                yield images
            else:
                yield blurred(images, strength) if kind == "blur" else noisy(images, strength, generator)

    @torch.inference_mode()
    def _replaced(self, images: UInt8[Tensor, "n 3 R R"], strength: float, generator: torch.Generator) -> Tensor:
        device, codes = next(self.tokenizer.parameters()).device, self.tokenizer.config.vocab_size
        with full_float32():
            tokens = self.tokenizer.encode(to_model_input(images.to(device))).cpu()
            return to_bytes(self.tokenizer.decode(replaced(tokens, strength, codes, generator).to(device))).cpu()


def open_degrader(args: argparse.Namespace, experiment: Experiment, device: torch.device, dims: int) -> Degrader:
    """Sets of the held-out images, all equally large, those of few classes too.

    Args:
        args: the stage's flags.
        experiment: which index and tokenizer must fit.
        device: of the tokenizer.
        dims: of the features, than which a set must be larger.

    Raises:
        InputError: index or tokenizer do not fit, or images are too few.
    """
    index = ImageIndex.load(args.index)
    tokenizer = load_model(args.tokenizer, "tokenizer", device)
    check_fit(experiment, args.index, index, args.tokenizer, tokenizer)
    gone = max(STRENGTHS["missing classes"])
    left = fewest_rows(torch.from_numpy(index.labels), gone)
    size = min(experiment.sampling.num_images, left)
    if size <= dims:
        raise InputError(
            f"sets of {size} images are too few for features of {dims} dimensions: {args.index} has {left} of its "
            f"{len(index)} images without {gone:.0%} of the classes, and sampling.num_images is "
            f"{experiment.sampling.num_images}; give more images, or a feature network with fewer dimensions"
        )
    return Degrader(index, experiment.images.resolution, tokenizer, size, experiment.seed)


def open_same_extractor(args: argparse.Namespace, reference: Features, device: torch.device) -> Extractor:
    """The feature network, which has to be that of the reference.

    Raises:
        InputError: it is another.
    """
    extractor = open_extractor(args.extractor, device)
    if (made_by := reference.conditions.get("extractor_sha256")) != extractor.sha256:
        raise InputError(
            f"{args.reference} was made by another network (sha256 {str(made_by)[:12]}...) than the one in "
            f"{args.extractor} ({extractor.sha256[:12]}...); extract its features again"
        )
    return extractor


def distances(
    worse: Degrader, extractor: Extractor, reference: Features, side: int
) -> Callable[[str, float, int], float]:
    """A function of kind, strength and draw: the Frechet distance of that set, seen at `side` pixels."""
    goal = gaussian_of(reference)

    def distance(kind: str, strength: float, draw: int) -> float:
        batches = (resized(batch, side) for batch in worse(kind, strength, draw))
        return frechet_distance(goal, fit_gaussian(torch.from_numpy(extract(extractor, batches)[0])))

    return distance


def measure(distance: Callable[[str, float, int], float]) -> dict[str, Any]:
    """Distances of every kind at rising strengths from 0 on, mean and spread over draws, and whether they rise."""
    kinds: dict[str, list[dict[str, float]]] = {}
    for kind, strengths in STRENGTHS.items():
        kinds[kind] = []
        for strength in (0.0, *strengths):
            values = np.array([distance(kind, strength, draw) for draw in range(DRAWS)])
            kinds[kind].append({"strength": strength, "mean": values.mean(), "sd": values.std(ddof=1)})
    ordered = {kind: bool((np.diff([row["mean"] for row in rows]) > 0).all()) for kind, rows in kinds.items()}
    return {"kinds": kinds, "ordered": ordered}


def readable(metric: str, found: dict[str, Any], size: int) -> str:
    """The distances as a Markdown table, a row per kind."""
    rows = []
    for kind, values in found["kinds"].items():
        cells = [f"{v['strength']:g}: {with_spread(v['mean'], v['sd'])}" for v in values]
        rows.append({"Made worse by": kind, **{f"Strength {i}": cell for i, cell in enumerate(cells)}})
    notes = [
        f"{metric} of {size} held-out images, mean ± standard deviation over {DRAWS} draws, at each strength.",
        "Blur: standard deviation in 28ths of the side; noise: of grey values, in shares of their range; missing "
        "classes and replaced tokens: their share (0: what the tokenizer gives back).",
    ]
    return to_markdown(pd.DataFrame(rows), "How the distance orders images made worse", notes)


if __name__ == "__main__":
    sys.exit(run_command(main))
