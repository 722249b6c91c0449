"""Compares gates with the entropy model: where patches begin in held-out images, how a model takes it, the cost."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from dpar import tracking
from dpar.config import gate_folder, load_experiment
from dpar.data.codes import CodeStore, open_codes
from dpar.device import default_device
from dpar.errors import run_command
from dpar.evaluation import flops
from dpar.files import read_json, write_json, write_text
from dpar.grid import gated_cells, merged_thresholds, threshold_of
from dpar.model.dpar import DPARConfig
from dpar.model.llamagen import LlamaGenConfig
from dpar.patchify import Agreement, PatchCounts, starts_for
from dpar.report.gates import TITLE, notes, readable
from dpar.report.tables import to_markdown
from dpar.sampling.networks import gate_threshold, gate_thresholds
from dpar.stages.score_entropies import scored
from dpar.train.distributed import Ranks
from dpar.train.objective import Patching, likelihood
from dpar.weights import load_model, model_config


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="compare_gates", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--manifest", type=Path, required=True, help="held-out codes, scored by the entropy model")
    flags.add_argument("--entropy-model", type=Path, required=True, help="folder")
    flags.add_argument("--gates", type=Path, nargs="+", required=True, help="folder gates/GATE of each gate")
    flags.add_argument("--models", type=Path, nargs="+", required=True, help="folder models/MODEL/STATE of each model")
    flags.add_argument("--thresholds", type=Path, nargs="*", default=[], help="what calibrate_threshold wrote")
    flags.add_argument("--output", type=Path, required=True, help="the numbers as JSON")
    flags.add_argument("--markdown", type=Path, required=True, help="the same as a table")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage: each model that is sampled through gates, with the entropy model's patches and with each gate's.

    Raises:
        InputError: networks or codes that were not made for one another.
    """
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    gates = {folder.name: folder for folder in args.gates}
    models = {(folder.parent.name, folder.name): folder for folder in args.models}
    thresholds = merged_thresholds(map(read_json, args.thresholds))
    with tracking.job(
        rule="compare_gates",
        experiment=args.experiment,
        inputs=[
            *(args.manifest, args.entropy_model, *args.gates, *args.models, *args.thresholds),
            *map(gate_thresholds, args.gates),
        ],
        outputs=[args.output, args.markdown],
        params={"gates": ", ".join(gates)},
    ) as job:
        device = default_device()
        codes = open_codes(args.manifest, entropy_model=model_config(args.entropy_model)["sha256"])
        placing: dict[str | None, tuple[CodeStore, LlamaGenConfig, dict[str, Any]]] = {}
        for gate, folder in {None: args.entropy_model, **gates}.items():
            settings, store = experiment.network(gate_folder(gate)), codes
            if gate is not None:
                tokens = codes.tokens.reshape(-1, codes.metadata.length)
                entropy = scored(folder, settings, tokens, codes.metadata, args.manifest, device)
                store = replace(codes, entropy=entropy.reshape(codes.tokens.shape))
            network = load_model(folder, settings.stored_as)
            about = {
                "gate": gate,
                "kind": settings.kind,
                "parameters": sum(p.numel() for p in network.parameters()),
                "correlation": correlation(codes, store),
                "sha256": model_config(folder)["sha256"],
            }
            placing[gate] = store, network.config, about
        rows = []
        for cell in gated_cells(experiment):
            folder = models[cell.model, cell.milestone]
            origin = model_config(folder)["provenance"]
            codes.metadata.expect(args.manifest, tokenizer=origin["tokenizer"], entropy_model=origin["entropy_model"])
            model = load_model(folder, "dpar", device)
            expected = None
            for gate, (store, config, about) in placing.items():
                threshold = threshold_of(cell.patchify, thresholds)
                if gate is not None:
                    threshold = gate_threshold(gates[gate], cell.patchify)
                patching = Patching(cell.patchify, threshold, experiment.grid[1])
                starts = starts_for(cell.patchify, threshold, first_view(store), experiment.grid[1])
                expected = starts if expected is None else expected
                guided = cell.sampling.cfg_scale not in (0, 1)
                found = likelihood(model, store, patching=patching, precision=origin["precision"], ranks=Ranks(device))
                rows.append(
                    {
                        "model": cell.model,
                        "milestone": cell.milestone,
                        "patchify": cell.patchify.model_dump(mode="json"),
                    }
                    | about
                    | {"threshold": threshold, "mean_patch_length": found.mean_patch_length, "nll": found.nll}
                    | agreement(expected, starts, experiment.grid[1], cell.patchify.row_boundary)
                    | cost(model.config, config, PatchCounts.of(starts), guided=guided)
                )
        found = {"images": codes.num_images, "codes": codes.digest, "rows": rows}
        write_json(args.output, found)
        markdown = to_markdown(readable(found), TITLE, notes(found))
        write_text(args.markdown, markdown)
        print(markdown)
        job.note(markdown)


def first_view(codes: CodeStore) -> Tensor:
    """Entropies in nats of the view of each image that likelihoods are measured on (B, T)."""
    assert codes.entropy is not None
    return torch.from_numpy(np.ascontiguousarray(codes.entropy[:, 0]))


def correlation(expected: CodeStore, found: CodeStore) -> float:
    """The linear correlation of two networks' entropies over all tokens but the first."""
    pair = torch.stack([first_view(codes)[:, 1:].flatten() for codes in (expected, found)])
    return float(torch.corrcoef(pair.double())[0, 1])


def agreement(
    expected: Bool[Tensor, "B T"], starts: Bool[Tensor, "B T"], grid_width: int, row_boundary: bool
) -> dict[str, Any]:
    """How well `starts` are the `expected` ones, for JSON."""
    found = Agreement.of(expected, starts, grid_width=grid_width, row_boundary=row_boundary)
    names = ("tokens", "share", "chance", "precision", "recall")
    return {"agreement": {name: getattr(found, name) for name in names}}


def cost(model: DPARConfig, gate: LlamaGenConfig, counts: PatchCounts, *, guided: bool) -> dict[str, float]:
    """1e9 multiply-accumulates of sampling an image, attention counted: the network that gates, and all together."""
    patches = np.arange(counts.tokens + 1.0)
    together = flops.sampling_gmacs(model, patches, entropy_model=gate, guided=guided)
    return {
        "gate_gmacs": float(flops.full_gmacs(gate)),
        "sampling_gmacs": counts.expectation(np.asarray(together)),
        "steps": counts.mean,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
