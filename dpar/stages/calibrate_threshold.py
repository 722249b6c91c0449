"""Finds the threshold in nats that gives a mean patch length the experiment asks for."""

import sys
from collections.abc import Sequence

from dpar.data.codes import stored_entropies
from dpar.errors import run_command
from dpar.files import write_json
from dpar.patches.calibration import calibrate
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage(
    "calibrate_threshold",
    __doc__,
    flag("--p-avg", "the mean patch length wanted, in tokens", type=float),
    flag("--manifest", "scored training codes"),
    flag("--output", "thresholds/pavgX.json"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage: the threshold counts with the experiment's own maximum length and row rule.

    Raises:
        InputError: the codes have no entropies or do not fit the experiment, or no threshold reaches the target.
    """
    run = STAGE.start(argv)
    args, experiment, target = run.args, run.experiment, run.args.p_avg
    patchify = experiment.patchify
    limits = {
        "max_length": patchify.max_length,
        "grid_width": experiment.grid[1],
        "row_boundary": patchify.row_boundary,
    }
    with run.job(
        target,
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
