"""Finds the thresholds in nats at which a gate's patches are as long as the entropy model's.

A gate's entropies have another scale, so that a threshold of the entropy model means nothing to it. What carries over
is the mean patch length: it is measured on a part of the training images, and the gate's threshold is searched there
as any threshold is that is calibrated.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt16

from dpar.data.codes import CodeStore, open_codes
from dpar.device import default_device
from dpar.errors import InputError, run_command
from dpar.experiment.cells import gated_cells, merged_thresholds
from dpar.experiment.settings import Experiment, gate_folder
from dpar.files import write_json
from dpar.model.entropy import computed_precision
from dpar.patches.calibration import calibrate
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule
from dpar.train.scoring import scored
from dpar.weights import model_config
from dpar.workflow import jobs
from dpar.workflow.stage import THRESHOLDS, Stage, flag

ROWS = 4096
"""Views that are scored, at most: a million tokens at 256 an image."""

STAGE = Stage(
    "calibrate_gate",
    __doc__,
    flag("--gate", "a name under `gates` of the experiment", type=str),
    flag("--gate-folder"),
    flag("--manifest", "training codes, scored by the entropy model"),
    THRESHOLDS,
    flag("--output", "gates/GATE.thresholds.json"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage, for every patch rule under which the experiment samples through gates.

    Raises:
        InputError: an unknown gate, or codes or a network that were made for something else.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    settings = experiment.network(gate_folder(args.gate))
    with run.job(
        args.gate,
        inputs=[
            *jobs.network(gate_folder(args.gate), args.gate_folder),
            *jobs.codes("scored", "train", args.manifest),
            *jobs.thresholds(experiment, args.thresholds),
        ],
        outputs=[args.output],
        params={"gate": args.gate, "kind": settings.kind},
    ) as job:
        store = open_codes(
            args.manifest, resolution=experiment.images.resolution, vocab_size=experiment.tokenizer.vocab_size
        )
        rows, expected = some_entropies(store, args.manifest, experiment.seed)
        device = default_device()
        found = scored(args.gate_folder, settings, rows, store.metadata, args.manifest, device)
        rules = matched_rules(experiment, merged_thresholds(args.thresholds), expected, found)
        for rule in rules:
            print(
                "E_Th {threshold:.6f} nats gives P_avg {achieved:.4f}; {entropy_model_threshold:.6f} nats of the "
                "entropy model give {wanted:.4f}".format(**rule),
                flush=True,
            )
            job.summary({"threshold": rule["threshold"], "wanted": rule["wanted"], "achieved": rule["achieved"]})
        gate, entropy_model = model_config(args.gate_folder)["sha256"], store.metadata.entropy_model
        about: dict[str, Any] = {"gate": gate, "entropy_model": entropy_model, "images": len(found), "rules": rules}
        if (precision := computed_precision(settings.precision, device)) != "float32":
            about["entropy_precision"] = precision
        write_json(args.output, about)


def some_entropies(
    store: CodeStore, manifest: Path, seed: int
) -> tuple[UInt16[np.ndarray, "N T"], Float32[np.ndarray, "N T"]]:
    """Tokens and entropies in nats of at most ROWS views, chosen at random and in the order stored.

    Args:
        manifest: of the codes, for the error.

    Raises:
        InputError: the codes have no entropies.
    """
    if store.entropy is None:
        raise InputError(f"the codes of {manifest} have no entropies; give the manifest of scored codes")
    tokens, entropy = (stored.reshape(-1, store.metadata.length) for stored in (store.tokens, store.entropy))
    rows = np.sort(np.random.default_rng(seed).choice(len(tokens), min(ROWS, len(tokens)), replace=False))
    return tokens[rows], entropy[rows]


def matched_rules(
    experiment: Experiment,
    thresholds: Mapping[str, Any],
    expected: Float32[np.ndarray, "N T"],
    found: Float32[np.ndarray, "N T"],
) -> list[dict[str, Any]]:
    """Each patch rule under which the experiment samples through gates, for JSON, with the gate's threshold.

    Args:
        thresholds: what calibrate_threshold wrote.
        expected: the entropy model's entropies in nats.
        found: the gate's.
    """
    patchifies = {cell.patchify.model_dump_json(): cell.patchify for cell in gated_cells(experiment)}
    return [
        {"patchify": patchify.model_dump(mode="json")}
        | matched(PatchRule.calibrated(patchify, thresholds, experiment.grid[1]), expected, found)
        for patchify in patchifies.values()
    ]


def matched(
    rule: PatchRule, expected: Float32[np.ndarray, "N T"], found: Float32[np.ndarray, "N T"]
) -> dict[str, float]:
    """The gate's threshold under one patch rule, for JSON, with both mean patch lengths.

    Args:
        rule: of the entropy model.
        expected: its entropies in nats.
        found: the gate's.
    """
    assert rule.threshold is not None, "static patches ask no entropies"
    wanted = PatchCounts.under(rule, expected).mean_patch_length
    threshold = calibrate(
        found, wanted, max_length=rule.max_length, grid_width=rule.grid_width, row_boundary=rule.row_boundary
    )
    return {
        "entropy_model_threshold": rule.threshold,
        "threshold": threshold,
        "wanted": wanted,
        "achieved": PatchCounts.under(replace(rule, threshold=threshold), found).mean_patch_length,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
