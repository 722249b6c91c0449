"""Finds the threshold in nats that gives a mean patch length the experiment asks for."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpar import tracking
from dpar.data.codes import stored_entropies
from dpar.errors import run_command
from dpar.experiment.loading import load_experiment
from dpar.files import write_json
from dpar.patches.calibration import calibrate
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule
from dpar.workflow import jobs


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="calibrate_threshold", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--p-avg", type=float, required=True, help="the mean patch length wanted, in tokens")
    flags.add_argument("--manifest", type=Path, required=True, help="scored training codes")
    flags.add_argument("--output", type=Path, required=True, help="thresholds/pavgX.json")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage: the threshold counts with the experiment's own maximum length and row rule.

    Raises:
        InputError: the codes have no entropies or do not fit the experiment, or no threshold reaches the target.
    """
    args = parser().parse_args(argv)
    experiment, target = load_experiment(args.experiment), args.p_avg
    patchify = experiment.patchify
    limits = {
        "max_length": patchify.max_length,
        "grid_width": experiment.grid[1],
        "row_boundary": patchify.row_boundary,
    }
    with tracking.job(
        rule="calibrate_threshold",
        experiment=args.experiment,
        name=f"calibrate_threshold[{target}]",
        inputs=jobs.codes("scored", "train", args.manifest),
        outputs=[args.output],
        params={"p_avg": target, **limits},
    ) as job:
        entropy = stored_entropies(experiment, args.manifest)
        threshold = calibrate(entropy, target, **limits)
        achieved = PatchCounts.under(PatchRule(threshold=threshold, **limits), entropy).mean_patch_length
        job.summary({"threshold": threshold, "achieved": achieved})
        print(f"E_Th {threshold:.6f} nats gives P_avg {achieved:.4f} (wanted {target})", flush=True)
        write_json(args.output, {"p_avg": {str(target): {"threshold": threshold, "achieved": achieved}}})


if __name__ == "__main__":
    sys.exit(run_command(main))
