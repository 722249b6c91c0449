"""Compares gates with the entropy model: where patches begin in held-out images, how a model takes it, the cost."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from dpar import tracking
from dpar.config import EntropyKind, EntropyModel, Patchify, gate_folder, load_experiment
from dpar.data.codes import CodeStore, open_codes
from dpar.device import default_device
from dpar.errors import run_command
from dpar.evaluation import flops
from dpar.evaluation.cost import guided_share
from dpar.files import read_json, write_json, write_text
from dpar.grid import gated_cells, merged_thresholds, threshold_of
from dpar.model.dpar import DPARConfig
from dpar.model.llamagen import LlamaGenConfig
from dpar.patchify import Agreement, PatchCounts, starts_for
from dpar.report.gates import BLIND, TITLE, notes, readable
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
        clocks = [Clock.of(args.entropy_model, None, experiment.entropy_model, codes, args.manifest, device)]
        for gate, folder in gates.items():
            clocks.append(Clock.of(folder, gate, experiment.network(gate_folder(gate)), codes, args.manifest, device))
        clocks.append(clocks[0].blind())
        rows = []
        for cell in gated_cells(experiment):
            folder = models[cell.model, cell.milestone]
            origin = model_config(folder)["provenance"]
            codes.metadata.expect(args.manifest, tokenizer=origin["tokenizer"], entropy_model=origin["entropy_model"])
            model = load_model(folder, "dpar", device)
            usual, *others = (clock.patching(cell.patchify, thresholds, experiment.grid[1]) for clock in clocks)
            expected = clocks[0].starts(usual)
            guided = guided_share(model.config.tokens, cell.sampling.cfg_scale, cell.sampling.cfg_interval)
            for clock, patching in zip(clocks, (usual, *others), strict=True):
                starts = clock.starts(patching)
                found = likelihood(
                    model, clock.codes, patching=patching, precision=origin["precision"], ranks=Ranks(device)
                )
                rows.append(
                    {"model": cell.model, "milestone": cell.milestone}
                    | {"patchify": cell.patchify.model_dump(mode="json")}
                    | {"gate": clock.gate, "kind": clock.kind, "parameters": clock.parameters, "sha256": clock.sha256}
                    | {"threshold": patching.threshold, "mean_patch_length": found.mean_patch_length, "nll": found.nll}
                    | {"correlation": correlation(clocks[0].codes, clock.codes)}
                    | {"agreement": agreement(expected, starts, patching)}
                    | cost(model.config, clock.config, starts, guided=guided)
                )
        found = {"images": codes.num_images, "codes": codes.digest, "rows": rows}
        write_json(args.output, found)
        markdown = to_markdown(readable(found), TITLE, notes(found))
        write_text(args.markdown, markdown)
        print(markdown)
        job.note(markdown)


@dataclass(frozen=True)
class Clock:
    """A network that places boundaries, and the codes with its entropies of them."""

    folder: Path
    gate: str | None  # None for the entropy model, BLIND for what it says of other images
    kind: EntropyKind
    config: LlamaGenConfig
    parameters: int
    sha256: str
    codes: CodeStore

    @classmethod
    def of(
        cls, folder: Path, gate: str | None, settings: EntropyModel, codes: CodeStore, where: Path, device: torch.device
    ) -> "Clock":
        """The clock in `folder`; `codes` have the entropy model's entropies, a gate scores them anew."""
        if gate is not None:
            tokens = codes.tokens.reshape(-1, codes.metadata.length)
            entropy = scored(folder, settings, tokens, codes.metadata, where, device)
            codes = replace(codes, entropy=entropy.reshape(codes.tokens.shape))
        network = load_model(folder, settings.stored_as)
        parameters = sum(p.numel() for p in network.parameters())
        return cls(folder, gate, settings.kind, network.config, parameters, model_config(folder)["sha256"], codes)

    def blind(self) -> "Clock":
        """The same, with each image's entropies put to one half the set away: patches alike, in vain places."""
        assert self.codes.entropy is not None
        away = len(self.codes.entropy) // 2  # neighbours are often of one class, and so not without skill
        return replace(self, gate=BLIND, codes=replace(self.codes, entropy=np.roll(self.codes.entropy, away, axis=0)))

    def patching(self, patchify: Patchify, thresholds: Mapping[str, Any], grid_width: int) -> Patching:
        """The rule with this network's threshold; `thresholds` are the entropy model's."""
        if self.gate in (None, BLIND):
            return Patching(patchify, threshold_of(patchify, thresholds), grid_width)
        return Patching(patchify, gate_threshold(self.folder, patchify), grid_width)

    def starts(self, patching: Patching) -> Bool[Tensor, "B T"]:
        """Where patches begin in the view of each image that likelihoods are measured on."""
        return starts_for(patching.rule, patching.threshold, first_view(self.codes), patching.grid_width)


def first_view(codes: CodeStore) -> Tensor:
    """Entropies in nats of the view of each image that likelihoods are measured on (B, T)."""
    assert codes.entropy is not None
    return torch.from_numpy(np.array(codes.entropy[:, 0]))


def correlation(expected: CodeStore, found: CodeStore) -> float:
    """The linear correlation of two networks' entropies over all tokens but the first."""
    pair = torch.stack([first_view(codes)[:, 1:].flatten() for codes in (expected, found)])
    return float(torch.corrcoef(pair.double())[0, 1])


def agreement(
    expected: Bool[Tensor, "B T"], starts: Bool[Tensor, "B T"], patching: Patching
) -> dict[str, int | float | None]:
    """How well `starts` are the `expected` ones, for JSON."""
    found = Agreement.of(expected, starts, grid_width=patching.grid_width, row_boundary=patching.rule.row_boundary)
    return {name: getattr(found, name) for name in ("tokens", "share", "chance", "precision", "recall")}


def cost(model: DPARConfig, clock: LlamaGenConfig, starts: Bool[Tensor, "B T"], *, guided: float) -> dict[str, float]:
    """1e9 multiply-accumulates of sampling an image, attention counted: the clock's alone, and all together."""
    counts = PatchCounts.of(starts)
    patches = np.arange(counts.tokens + 1.0)
    together = flops.sampling_gmacs(model, patches, entropy_model=clock, guided=guided)
    return {
        "gate_gmacs": float(flops.full_gmacs(clock)),
        "sampling_gmacs": counts.expectation(np.asarray(together)),
        "steps": counts.mean,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
