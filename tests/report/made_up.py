"""Measurements as the stages write them, with numbers that a test can recognise."""

from pathlib import Path

import numpy as np

from dpar.experiment.cells import model_cells, p_avg_targets, sample_cells
from dpar.experiment.settings import Experiment
from dpar.files import write_json
from dpar.report.figures import new_figure, save


def metrics(distance: float, published: bool = False, samples: int = 320) -> dict:
    """What compute_metrics writes."""
    values = {"frechet_distance": distance, "inception_score": 3.0, "precision": 0.5, "recall": 0.25, "kid": 0.1}
    return {
        "metric": "FD[classifier, 4]",
        "values": values | {"class_agreement": 0.75},
        "conditions": {
            "samples": samples,
            "reference_samples": 96,
            "reference": "train",
            "extractor_sha256": "ab" * 32,
        },
        "warnings": [],
        "comparable_to_published": published,
        "comparable_reason": "the feature network is not Inception",
    }


def made_up_floor() -> dict:
    """What measure_noise_floor writes."""
    floor = {"frechet_distance": {"mean": 0.5, "sd": 0.1}}
    return {"metric": "FD[classifier, 4]", **floor, "conditions": {"samples": 48}, "warnings": ["few images"]}


def write(folder: Path, experiment: Experiment) -> dict[str, Path]:
    """Writes every input of make_table to `folder`; returns the files that are not a list."""
    for place, cell in enumerate(sample_cells(experiment).values()):
        for seed in cell.sampling.seeds:
            measured = metrics(10 * (place + 1) + seed, samples=cell.sampling.num_images)
            write_json(folder / "metrics" / cell.slug / f"seed{seed}.json", measured)
        patch_length = 1.8 if model_cells(experiment)[cell.model].transformer.is_dpar else None
        likelihood = {"nll": 4.0 + place, "mean_patch_length": patch_length, "tokens": 1000}
        write_json(folder / "likelihood" / cell.model / f"{cell.milestone}.json", likelihood)
        picture = folder / "samples" / cell.slug / f"seed{cell.sampling.seeds[0]}" / "00000.png"
        save(new_figure(1, 1), picture)
        np.savez(
            picture.with_suffix(".npz"),
            arr_0=np.full((16, 32, 32, 3), 40 * place % 256, np.uint8),
            labels=np.repeat(np.arange(4), 4),
        )
    thresholds = {str(p): {"threshold": 2 * p, "achieved": p + 0.001} for p in p_avg_targets(experiment)}
    costs = {slug: {"parameters": 1000, "training_gmacs": 1.5} for slug in model_cells(experiment)}
    files = {
        "noise-floor": folder / "metrics" / "noise_floor.json",
        "patch-counts": folder / "patch_counts.json",
        "thresholds": folder / "thresholds.json",
    }
    write_json(files["noise-floor"], made_up_floor())
    write_json(files["patch-counts"], {"cells": costs})
    write_json(files["thresholds"], {"p_avg": thresholds})
    write_json(folder / "experiment.json", experiment.model_dump(mode="json"))
    return files
