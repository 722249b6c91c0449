"""Prints what the experiment's models are made of and what they cost (Tables 1 and 8); nothing has to be trained."""

import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dpar.errors import InputError, run_command
from dpar.evaluation import cost
from dpar.experiment.settings import Experiment, Patchify
from dpar.files import write_text
from dpar.model import flops
from dpar.paper import (
    DOWNSAMPLE,
    PAPER_DISAGREES,
    PAPER_GMACS,
    PAPER_MAX_LENGTH,
    PAPER_PARAMETERS,
    PAPER_PATCHES,
    PAPER_THRESHOLD,
)
from dpar.report import tables
from dpar.workflow import planning
from dpar.workflow.stage import Stage, flag

TITLES = {"table1": "Architectures", "table8": "Cost of one image"}

STAGE = Stage("describe_models", __doc__, flag("--output", "folder of table1 and table8, as csv, md and tex"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    found = {"table1": architectures(experiment), "table8": costs(experiment)}
    notes = {"table1": architecture_notes(experiment), "table8": cost_notes(experiment)}
    outputs = [args.output / f"{name}.{form}" for name in found for form in ("csv", "md", "tex")]
    with run.job(outputs=outputs) as job:
        for name, frame in found.items():
            shown = frame.map(shown_number)
            write_text(args.output / f"{name}.csv", frame.to_csv(index=False))
            write_text(args.output / f"{name}.tex", tables.to_latex(shown, TITLES[name]))
            markdown = tables.to_markdown(shown, TITLES[name], notes[name])
            write_text(args.output / f"{name}.md", markdown)
            print(markdown)
        job.note("\n\n".join((args.output / f"{name}.md").read_text("utf-8") for name in found))


def architectures(experiment: Experiment) -> pd.DataFrame:
    """Table 1: one row per model, ours next to the paper's where it is one of the paper's."""
    return pd.DataFrame(
        {
            "Model": name,
            **compare_with_paper(
                "Parameters", cost.parameters(experiment, model) / 1e6, PAPER_PARAMETERS.get(model.variant or ""), "M"
            ),
            "Encoder": model.sizes["encoder_layers"],
            "Layers": model.sizes["layers"],
            "Decoder": model.sizes["decoder_layers"],
            "Width": model.sizes["width"],
            "Heads": model.sizes["heads"],
        }
        for name, model in experiment.models.items()
    ).astype({"Encoder": "Int64", "Decoder": "Int64"})


def costs(experiment: Experiment) -> pd.DataFrame:
    """Table 8: one row per model, 1e9 multiply-accumulates per image, ours next to the paper's."""
    patches, rows = assumed_patches(experiment), []
    for name, model in experiment.models.items():
        if model.is_dpar and patches is None:
            rows.append({"Model": name})
            continue
        config, m = cost.network(experiment, model), patches if model.is_dpar else None
        printed = PAPER_GMACS.get((model.variant or "", experiment.images.resolution))
        rows.append(
            {
                "Model": name,
                "Patches": m,
                **compare_with_paper("Forward", float(flops.forward_gmacs(config, m)), printed, "G"),
                "With attention (G)": float(flops.full_gmacs(config, m)),
                "Training (G)": float(flops.training_gmacs(config, m)),
            }
        )
    return pd.DataFrame(rows)


def compare_with_paper(what: str, ours: float, theirs: float | None, unit: str) -> dict[str, float | None]:
    """A quantity, what the paper prints, if anything, and how far ours is from it in per cent."""
    return {
        f"{what} ({unit})": ours,
        f"Paper ({unit})": theirs,
        "Δ (%)": None if theirs is None else 100 * (ours / theirs - 1),
    }


def assumed_patches(experiment: Experiment) -> float | None:
    """M before anything is trained: what `p_avg` asks for, or the paper's at the threshold; None if neither says."""
    (rows, columns), patchify, side = experiment.grid, experiment.patchify, experiment.images.resolution
    if patchify.p_avg is not None:
        return rows * columns / patchify.p_avg
    if rows * DOWNSAMPLE != side or side not in PAPER_PATCHES:
        return None
    if patchify == Patchify(threshold=PAPER_THRESHOLD[side], max_length=PAPER_MAX_LENGTH):
        return PAPER_PATCHES[side]
    try:
        return planning.assumed_patches(experiment, patchify)
    except InputError:  # a threshold that the paper says nothing of
        return None


def architecture_notes(experiment: Experiment) -> list[str]:
    """Where the paper and the count disagree."""
    variants = {model.variant for model in experiment.models.values()}
    return [f"{variant}: {why}." for variant, why in PAPER_DISAGREES.items() if variant in variants]


def cost_notes(experiment: Experiment) -> list[str]:
    """Assumptions behind the costs."""
    patches = assumed_patches(experiment)
    counted = "`patch_counts.json` has the patches of the experiment's own images."
    if patches is None:
        return [f"A threshold in nats says nothing of the number of patches before images are scored. {counted}"]
    return [
        "1e9 multiply-accumulates per image. Forward: linear layers alone, as the paper counts; training: forward and "
        "backward, with attention.",
        f"{patches:.1f} patches per image are assumed, which `p_avg` asks for or what the paper prints lets expect. "
        f"{counted}",
    ]


def shown_number(value: Any) -> str:
    """A cell as people read it."""
    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


if __name__ == "__main__":
    sys.exit(run_command(main))
