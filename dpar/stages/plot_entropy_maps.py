"""Draws entropy maps of held-out images with the outlines of their patches (Figure 2)."""

import sys
from collections.abc import Sequence

import numpy as np
import torch

from dpar.data.codes import open_codes
from dpar.data.crops import center_crop
from dpar.data.images import ImageIndex
from dpar.errors import run_command
from dpar.experiment.cells import merged_thresholds
from dpar.patches.rule import PatchRule, patch_ids
from dpar.report.figures import entropy_maps, save
from dpar.workflow import jobs
from dpar.workflow.stage import THRESHOLDS, Stage, flag

SHOWN = 8

STAGE = Stage(
    "plot_entropy_maps",
    __doc__,
    flag("--index", "index/val.json"),
    flag("--manifest", "scored/val/manifest.json"),
    THRESHOLDS,
    flag("--output"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    with run.job(
        inputs=[
            *jobs.index("val", args.index),
            *jobs.codes("scored", "val", args.manifest),
            *jobs.thresholds(experiment, args.thresholds),
        ],
        outputs=[args.output],
        params={},
    ) as job:
        index, codes = ImageIndex.load(args.index), open_codes(args.manifest)
        entropy = codes.entropy
        assert entropy is not None, "the scored store has entropies"
        rule = PatchRule.calibrated(experiment.patchify, merged_thresholds(args.thresholds), experiment.grid[1])
        starts = rule.starts(torch.from_numpy(np.array(entropy[:, 0])))
        chosen = spread(starts.sum(1).numpy(), codes.labels, SHOWN)
        side = experiment.images.resolution
        rows, columns = experiment.grid
        figure = entropy_maps(
            np.stack([np.asarray(center_crop(index.read(i), side)) for i in chosen]),
            np.stack([entropy[i, 0].reshape(rows, columns) for i in chosen]),
            np.stack([patch_ids(starts[i : i + 1])[0].reshape(rows, columns).numpy() for i in chosen]),
            rule.threshold,
        )
        save(figure, args.output)
        job.figure(args.output)


def spread(patches: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """Images from the fewest patches to the most in even steps, of different classes where that can be.

    Args:
        patches: (N,) patches per image.
        labels: (N,).
    """
    order = np.argsort(patches, kind="stable")
    chosen: list[int] = []
    for part in np.array_split(order, min(count, len(order))):
        seen = {int(labels[i]) for i in chosen}
        chosen.append(int(next((i for i in part if int(labels[i]) not in seen), part[len(part) // 2])))
    return chosen


if __name__ == "__main__":
    sys.exit(run_command(main))
