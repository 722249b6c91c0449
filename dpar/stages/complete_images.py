"""Continues the upper halves of held-out images: for their own class several times, and for other classes.

Exact for a raster prefix, since the model draws in raster order: the rest is a draw from what the model thinks of
images of that class that begin so. A hole, or a lower half, cannot be filled in this way.
"""

import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from dpar.data.classes import Classes
from dpar.data.crops import center_crop
from dpar.data.images import ImageIndex
from dpar.device import default_device
from dpar.errors import run_command
from dpar.experiment.cells import sample_cell
from dpar.patches.rule import PatchRule
from dpar.report.figures import sample_columns, save
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import load_networks
from dpar.sampling.picture import class_rows
from dpar.sampling.request import Request
from dpar.weights import model_config
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

IMAGES, DRAWS, OTHERS = 8, 4, 3  # held-out images; continuations of each for its own class; other classes

STAGE = Stage(
    "complete_images",
    __doc__,
    flag("--cell", "of the set of samples whose model and guidance are shown", type=str),
    flag("--index", "index/val.json"),
    flag("--model-folder"),
    flag("--entropy-model", "folder; read where patches are dynamic"),
    flag("--tokenizer", "folder"),
    flag("--output", "PNG, a row per image"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage: guidance is the cell's, the patches are those of training.

    Raises:
        InputError: an unknown cell, networks of something else, or not even one image fits the memory.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    cell = sample_cell(experiment, args.cell)
    sampling, side = cell.sampling, experiment.images.resolution
    model = jobs.model(f"{cell.model}/{cell.milestone}", args.model_folder)
    inputs = jobs.index("val", args.index) + model + jobs.tokenizer(args.tokenizer)
    run.check(inputs)
    rule = PatchRule.of_model(model_config(args.model_folder))
    asked = [args.entropy_model] if rule is not None and rule.is_dynamic else []
    with run.job(
        inputs=inputs + [wanted for folder in asked for wanted in jobs.network("entropy_model", folder)],
        outputs=[args.output],
        params={"cell": args.cell, **{f"sample.{name}": value for name, value in sampling.draw.items()}},
    ) as job:
        folders = args.model_folder, asked[0] if asked else None, args.tokenizer
        networks = load_networks(*folders, precision=sampling.precision, device=default_device())
        index = ImageIndex.load(args.index)
        named = Classes.of_images(experiment.images, index)
        chosen = np.concatenate(class_rows(index.labels, 1, IMAGES))
        originals = np.stack([np.asarray(center_crop(index.read(int(i)), side)) for i in chosen])
        classes = (index.labels[chosen][:, None] + continuations(index.num_classes)) % index.num_classes
        rows, columns = experiment.grid
        prefix = networks.tokens(originals)[:, : rows // 2 * columns].repeat_interleave(classes.shape[1], 0)
        sampler = ImageSampler(networks, rule, DrawSettings(**sampling.draw), sampling.batch_size, side)
        completed = sampler.images(Request.of(classes.ravel(), experiment.seed, prefix)).images
        shown = shown_columns(originals, completed.reshape(*classes.shape, side, side, 3), rows // 2 * side // rows)
        save(sample_columns(shown, [named.title(int(c)) for c in index.labels[chosen]]), args.output)
        job.image(args.output, key="completions", step=0)


def shown_columns(
    originals: UInt8[np.ndarray, "N side side 3"], completed: UInt8[np.ndarray, "N C side side 3"], kept_rows: int
) -> dict[str, UInt8[np.ndarray, "N _ side side 3"]]:
    """The figure's columns: images as they are, the upper `kept_rows` pixels of each, and their continuations."""
    kept = originals.copy()
    kept[:, kept_rows:] = 255
    shown = {"held out": originals[:, None], "kept": kept[:, None], "continued": completed[:, :DRAWS]}
    return shown | ({"as another class": completed[:, DRAWS:]} if completed.shape[1] > DRAWS else {})


def continuations(num_classes: int) -> list[int]:
    """The distance of the class of each continuation of an image from its own: 0 for DRAWS of them, then others."""
    return [0] * DRAWS + list(range(1, min(OTHERS + 1, num_classes)))


if __name__ == "__main__":
    sys.exit(run_command(main))
