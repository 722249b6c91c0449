"""Draws the metric of every model against its cost of training, DPAR beside LlamaGen (Figure 1b)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dpar import tracking
from dpar.errors import run_command
from dpar.files import read_json
from dpar.report.figures import metric_against_cost, save


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="plot_compute", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--tables", type=Path, nargs="+", required=True, help="tables/TABLE.csv ...")
    flags.add_argument("--noise-floor", type=Path, required=True)
    flags.add_argument("--output", type=Path, required=True)
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    args = parser().parse_args(argv)
    with tracking.job(
        rule="plot_compute",
        experiment=args.experiment,
        name="plot_compute",
        inputs=[*args.tables, args.noise_floor],
        outputs=[args.output],
        params={},
    ) as job:
        floor = read_json(args.noise_floor)
        rows = pd.concat([pd.read_csv(path) for path in args.tables], ignore_index=True).drop_duplicates("cell")
        rows = best_rows(rows.dropna(subset=["training_gmacs", "frechet_distance"]))
        spreads = rows.reindex(columns=["frechet_distance_sd"], fill_value=0.0)["frechet_distance_sd"].fillna(0.0)
        points = [
            {
                "label": row["cell"],
                "model": row["model"],
                "cost": row["training_gmacs"],
                "value": row["frechet_distance"],
                "spread": spread,
            }
            for row, spread in zip(rows.to_dict("records"), spreads, strict=True)
        ]
        save(metric_against_cost(points, floor["metric"], floor["frechet_distance"]["mean"]), args.output)
        job.figure(args.output)


def best_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each model as the experiment describes it, fully trained, the row of the guidance that suits it best."""
    drawn_otherwise = rows.filter(like="inference.").notna().any(axis="columns")
    own = rows.loc[(rows["training"] == rows["model"]) & ~drawn_otherwise]
    trained = own["milestone"].str.extract(r"(\d+)$", expand=False).astype(int)
    last = own.loc[trained == trained.groupby(own["model"]).transform("max")]
    return last.loc[last.groupby("model")["frechet_distance"].idxmin()]


if __name__ == "__main__":
    sys.exit(run_command(main))
