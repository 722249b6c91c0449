"""Finds the thresholds in nats that give the mean patch lengths the experiment asks for."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dpar import tracking
from dpar.config import Experiment, load_experiment
from dpar.data.codes import open_codes
from dpar.errors import InputError, run_command
from dpar.files import write_json
from dpar.grid import p_avg_targets
from dpar.patchify import calibrate, simulate


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="calibrate_thresholds", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--manifest", type=Path, required=True, help="scored training codes")
    flags.add_argument("--output", type=Path, required=True, help="thresholds.json")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage: each threshold counts with the experiment's own maximum length and row rule.

    Raises:
        InputError: the codes have no entropies or do not fit the experiment, or no threshold reaches a target.
    """
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    targets = p_avg_targets(experiment)
    rule = {
        "max_length": experiment.patchify.max_length,
        "grid_width": experiment.grid[1],
        "row_boundary": experiment.patchify.row_boundary,
    }
    with tracking.job(
        rule="calibrate_thresholds",
        experiment=args.experiment,
        name="calibrate_thresholds",
        inputs=[args.manifest],
        outputs=[args.output],
        params={"p_avg": ", ".join(map(str, targets)), **rule},
    ) as job:
        found = {}
        if targets:
            entropy = stored_entropies(experiment, args.manifest)
        for target in targets:
            threshold = calibrate(entropy, target, **rule)
            counts = simulate(
                entropy,
                thresholds=[threshold],
                max_lengths=[rule["max_length"]],
                grid_width=rule["grid_width"],
                row_boundary=rule["row_boundary"],
            )[threshold, rule["max_length"]]
            found[str(target)] = {"threshold": threshold, "achieved": counts.mean_patch_length}
            job.summary({f"threshold/p_avg_{target}": threshold, f"achieved/p_avg_{target}": counts.mean_patch_length})
            print(f"E_Th {threshold:.6f} nats gives P_avg {counts.mean_patch_length:.4f} (wanted {target})", flush=True)
        write_json(args.output, {"p_avg": found})


def stored_entropies(experiment: Experiment, manifest: Path) -> Float32[np.ndarray, "N T"]:
    """The entropies of every stored view of every image, mapped from the local disk, one row a view.

    Raises:
        InputError: the codes were not scored or do not fit the experiment.
    """
    store = open_codes(manifest, resolution=experiment.images.resolution, vocab_size=experiment.tokenizer.vocab_size)
    if store.entropy is None:
        raise InputError(f"the codes of {manifest} have no entropies; give the manifest of scored codes, scored/train")
    return store.entropy.reshape(-1, store.metadata.length)


if __name__ == "__main__":
    sys.exit(run_command(main))
