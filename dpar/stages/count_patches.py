"""Counts the patches that each model's settings give the training images, and what they cost."""

import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float32

from dpar.data.codes import stored_entropies
from dpar.errors import run_command
from dpar.evaluation import cost
from dpar.experiment.cells import ModelCell, merged_thresholds, model_cells
from dpar.experiment.settings import Experiment
from dpar.files import write_json
from dpar.model import flops
from dpar.patches.counts import PatchCounts, simulate
from dpar.patches.rule import PatchRule
from dpar.workflow import jobs
from dpar.workflow.stage import THRESHOLDS, Stage, flag

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)

STAGE = Stage(
    "count_patches",
    __doc__,
    flag("--manifest", "scored training codes"),
    THRESHOLDS,
    flag("--output", "patch_counts.json"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the codes have no entropies or do not fit the experiment, or a threshold is not calibrated.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    cells = model_cells(experiment)
    with run.job(
        inputs=jobs.codes("scored", "train", args.manifest) + jobs.thresholds(experiment, args.thresholds),
        outputs=[args.output],
        params={"models": ", ".join(cells), "cfg_scale": experiment.sampling.cfg_scale},
    ) as job:
        entropy = stored_entropies(experiment, args.manifest)
        thresholds = merged_thresholds(args.thresholds)
        rules = {
            slug: PatchRule.calibrated(cell.patchify, thresholds, experiment.grid[1])
            for slug, cell in cells.items()
            if cell.transformer.is_dpar
        }
        counts = count(rules.values(), entropy)
        found = {
            slug: describe(experiment, cell, counts[rules[slug]] if slug in rules else None)
            | {"threshold": rules[slug].threshold if slug in rules else None}
            for slug, cell in cells.items()
        }
        write_json(args.output, {"images": len(entropy), "tokens": entropy.shape[1], "cells": found})
        for slug, cell in found.items():
            numbers = ("mean_patch_length", "steps", "forward_gmacs", "training_gmacs", "sampling_gmacs")
            job.summary({f"{name}/{slug}": cell[name] for name in numbers if cell[name] is not None})
        job.note(summary_table(found))
        print(summary_table(found))


def count(rules: Collection[PatchRule], entropy: Float32[np.ndarray, "N T"]) -> dict[PatchRule, PatchCounts]:
    """The patches under each rule; rules that differ in their maximum length alone are counted in one pass."""
    counts = {rule: PatchCounts.under(rule, entropy) for rule in rules if not rule.is_dynamic}
    dynamic = sorted((rule for rule in rules if rule.is_dynamic), key=_without_max_length)
    for (threshold, row_boundary, grid_width), some in groupby(dynamic, key=_without_max_length):
        alike = {rule.max_length: rule for rule in some}
        found = simulate(
            entropy,
            thresholds=[threshold],
            max_lengths=list(alike),
            grid_width=grid_width,
            row_boundary=row_boundary,
        )
        counts |= {rule: found[threshold, max_length] for max_length, rule in alike.items()}
    return counts


def _without_max_length(rule: PatchRule) -> tuple[float, bool, int]:
    assert rule.threshold is not None
    return rule.threshold, rule.row_boundary, rule.grid_width


def describe(experiment: Experiment, cell: ModelCell, counts: PatchCounts | None) -> dict[str, Any]:
    """Patches and costs per image of one model, for JSON; GMACs are 1e9 multiply-accumulates.

    `forward_gmacs` is Table 8's count; the others count attention products too. `sampling_gmacs` holds guidance, if the
    experiment samples with it, and the entropy model, if the patches are dynamic. `steps` are calls of the patch
    transformer, or LlamaGen's tokens (Table 2).
    """
    config = cost.network(experiment, cell.transformer)
    boundaries = cost.boundary_network(experiment, cell.transformer, cell.patchify)
    guided = cost.guided_share(config.tokens, experiment.sampling.cfg_scale, experiment.sampling.cfg_interval)
    patches = None if counts is None else np.arange(counts.tokens + 1.0)

    def mean(of_images: flops.Number) -> float:
        return float(of_images) if counts is None else counts.expectation(np.asarray(of_images))

    found: dict[str, Any] = {
        "architecture": "dpar" if cell.transformer.is_dpar else "llamagen",
        "parameters": cost.parameters(experiment, cell.transformer),
        "patchify": None if counts is None else cell.patchify.model_dump(mode="json"),
        "mean_patch_length": None if counts is None else counts.mean_patch_length,
        "patches": None,
        "steps": config.tokens if counts is None else counts.mean,
        "forward_gmacs": mean(flops.forward_gmacs(config, patches)),
        "full_gmacs": mean(flops.full_gmacs(config, patches)),
        "training_gmacs": mean(flops.training_gmacs(config, patches)),
        "sampling_gmacs": mean(flops.sampling_gmacs(config, patches, entropy_model=boundaries, guided=guided)),
        "kv_cache_bytes": mean(flops.kv_cache_bytes(config, patches, entropy_model=boundaries, guided=guided > 0)),
    }
    if counts is not None:
        found["patches"] = {
            "mean": counts.mean,
            "percentiles": {str(q): counts.percentile(q) for q in PERCENTILES},
            "histogram": counts.histogram.tolist(),
        }
    return found


def summary_table(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Patches and costs of all models as a Markdown table."""
    lines = [
        "| model | E_Th (nats) | P_max | P_avg | M, mean | M, 5 to 95 % | forward GMACs | training GMACs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for slug, cell in cells.items():
        patching = ["-"] * 5
        if cell["patches"] is not None:
            share = cell["patches"]["percentiles"]
            static = cell["threshold"] is None
            patching = [
                "static" if static else f"{cell['threshold']:.6g}",
                "-" if static else str(cell["patchify"]["max_length"] or "none"),
                f"{cell['mean_patch_length']:.4f}",
                f"{cell['patches']['mean']:.2f}",
                f"{share['5']} to {share['95']}",
            ]
        costs = [f"{cell[name]:.4g}" for name in ("forward_gmacs", "training_gmacs")]
        lines.append(f"| {' | '.join([slug, *patching, *costs])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
