"""Compares gates with the entropy model: where patches begin in held-out images, how a model takes it, the cost."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from dpar.data.codes import CodeStore, open_codes
from dpar.device import default_device
from dpar.errors import run_command
from dpar.evaluation.agreement import Agreement
from dpar.evaluation.cost import guided_share
from dpar.experiment.cells import SampleCell, gated_cells, merged_thresholds
from dpar.experiment.settings import EntropyKind, EntropyModel, Patchify, gate_folder
from dpar.files import write_json, write_text
from dpar.model import flops
from dpar.model.dpar import DPARConfig
from dpar.model.llamagen import LlamaGenConfig
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule
from dpar.report.gates import BLIND, TITLE, notes, readable
from dpar.report.tables import to_markdown
from dpar.sampling.networks import gate_threshold, gate_thresholds
from dpar.train.distributed import Ranks
from dpar.train.objective import likelihood
from dpar.train.scoring import scored
from dpar.weights import load_model, model_config, provenance_of
from dpar.workflow import jobs
from dpar.workflow.stage import THRESHOLDS, Stage, flag

STAGE = Stage(
    "compare_gates",
    __doc__,
    flag("--manifest", "held-out codes, scored by the entropy model"),
    flag("--entropy-model", "folder"),
    flag("--gates", "folder gates/GATE of each gate", nargs="+"),
    flag("--models", "folder models/MODEL/STATE of each model", nargs="+"),
    THRESHOLDS,
    flag("--output", "the numbers as JSON"),
    flag("--markdown", "the same as a table"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage: each model that is sampled through gates, with the entropy model's patches and with each gate's.

    Raises:
        InputError: networks or codes that were not made for one another.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    gates = {folder.name: folder for folder in args.gates}
    models = {(folder.parent.name, folder.name): folder for folder in args.models}
    with run.job(
        inputs=[
            *jobs.codes("scored", "val", args.manifest),
            *jobs.network("entropy_model", args.entropy_model),
            *(wanted for gate, folder in gates.items() for wanted in jobs.network(gate_folder(gate), folder)),
            *(wanted for state, folder in models.items() for wanted in jobs.model("/".join(state), folder)),
            *jobs.thresholds(experiment, args.thresholds),
            *(wanted for gate, f in gates.items() for wanted in jobs.gate_thresholds(gate, gate_thresholds(f))),
        ],
        outputs=[args.output, args.markdown],
        params={"gates": ", ".join(gates)},
    ) as job:
        thresholds = merged_thresholds(args.thresholds)
        device = default_device()
        codes = open_codes(args.manifest, entropy_model=model_config(args.entropy_model)["sha256"])
        networks = [
            BoundaryNetwork.of(folder, gate, experiment.network(gate_folder(gate)), codes, args.manifest, device)
            for gate, folder in {None: args.entropy_model, **gates}.items()
        ]
        networks.append(networks[0].blind())
        rows = []
        for cell in gated_cells(experiment):
            rules = [network.rule(cell.patchify, thresholds, experiment.grid[1]) for network in networks]
            rows += compared(cell, models[cell.model, cell.milestone], networks, rules, args.manifest, device)
        found = {"images": codes.num_images, "codes": codes.digest, "rows": rows}
        write_json(args.output, found)
        markdown = to_markdown(readable(found), TITLE, notes(found))
        write_text(args.markdown, markdown)
        print(markdown)
        job.note(markdown)


@dataclass(frozen=True)
class BoundaryNetwork:
    """A network that places boundaries, and the codes with its entropies of them."""

    folder: Path
    gate: str | None  # None for the entropy model, BLIND for its entropies of other images
    kind: EntropyKind
    config: LlamaGenConfig
    parameters: int
    sha256: str
    codes: CodeStore

    @classmethod
    def of(
        cls, folder: Path, gate: str | None, settings: EntropyModel, codes: CodeStore, where: Path, device: torch.device
    ) -> "BoundaryNetwork":
        """The network in `folder`; `codes` have the entropy model's entropies, a gate scores them anew."""
        if gate is not None:
            tokens = codes.tokens.reshape(-1, codes.metadata.length)
            entropy = scored(folder, settings, tokens, codes.metadata, where, device)
            codes = replace(codes, entropy=entropy.reshape(codes.tokens.shape))
        network = load_model(folder, settings.stored_as)
        parameters = sum(p.numel() for p in network.parameters())
        return cls(folder, gate, settings.kind, network.config, parameters, model_config(folder)["sha256"], codes)

    def blind(self) -> "BoundaryNetwork":
        """The same, each image's entropies given to one half the set away: same lengths, uninformative positions."""
        assert self.codes.entropy is not None
        away = len(self.codes.entropy) // 2  # neighbours are often of one class, and so not without skill
        return replace(self, gate=BLIND, codes=replace(self.codes, entropy=np.roll(self.codes.entropy, away, axis=0)))

    def rule(self, patchify: Patchify, thresholds: Mapping[str, Any], grid_width: int) -> PatchRule:
        """The rule with this network's threshold; `thresholds` are the entropy model's."""
        if self.gate in (None, BLIND):
            return PatchRule.calibrated(patchify, thresholds, grid_width)
        return PatchRule.of(patchify, gate_threshold(self.folder, patchify), grid_width)


def compared(
    cell: SampleCell,
    folder: Path,
    networks: Sequence[BoundaryNetwork],
    rules: Sequence[PatchRule],
    manifest: Path,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """A row for each network under its rule, for JSON; the first of them is the one that the others should agree with.

    Args:
        cell: samples of the model.
        folder: the model's.
        manifest: of the codes.

    Raises:
        InputError: the codes were made for another model.
    """
    origin, sampling = provenance_of(folder, "tokenizer", "entropy_model", "precision"), cell.sampling
    metadata = networks[0].codes.metadata
    metadata.expect(manifest, tokenizer=origin["tokenizer"], entropy_model=origin["entropy_model"])
    model = load_model(folder, "dpar", device)
    guided = guided_share(model.config.tokens, sampling.cfg_scale, sampling.cfg_interval)
    usual = rules[0].starts(first_view(networks[0].codes))
    for network, rule in zip(networks, rules, strict=True):
        starts = rule.starts(first_view(network.codes))
        found = likelihood(model, network.codes, rule=rule, precision=origin["precision"], ranks=Ranks(device))
        yield (
            {"model": cell.model, "milestone": cell.milestone, "patchify": cell.patchify.model_dump(mode="json")}
            | {"gate": network.gate, "kind": network.kind, "parameters": network.parameters, "sha256": network.sha256}
            | {"threshold": rule.threshold, "mean_patch_length": found.mean_patch_length, "nll": found.nll}
            | {"correlation": correlation(networks[0].codes, network.codes)}
            | {"agreement": agreement(usual, starts, rule)}
            | cost(model.config, network.config, starts, guided=guided)
        )


def first_view(codes: CodeStore) -> Tensor:
    """Entropies in nats of the view of each image that likelihoods are measured on (B, T)."""
    assert codes.entropy is not None
    return torch.from_numpy(np.array(codes.entropy[:, 0]))


def correlation(expected: CodeStore, found: CodeStore) -> float:
    """The linear correlation of two networks' entropies over all tokens but the first."""
    pair = torch.stack([first_view(codes)[:, 1:].flatten() for codes in (expected, found)])
    return float(torch.corrcoef(pair.double())[0, 1])


def agreement(
    expected: Bool[Tensor, "B T"], starts: Bool[Tensor, "B T"], rule: PatchRule
) -> dict[str, int | float | None]:
    """The agreement of `starts` with the `expected` ones, for JSON."""
    found = Agreement.of(expected, starts, rule)
    return {name: getattr(found, name) for name in ("tokens", "share", "chance", "precision", "recall")}


def cost(model: DPARConfig, network: LlamaGenConfig, starts: Bool[Tensor, "B T"], *, guided: float) -> dict[str, float]:
    """1e9 multiply-accumulates of sampling an image, attention counted: the network's alone, and all together."""
    counts = PatchCounts.of(starts)
    patches = np.arange(counts.tokens + 1.0)
    together = flops.sampling_gmacs(model, patches, entropy_model=network, guided=guided)
    return {
        "gate_gmacs": float(flops.full_gmacs(network)),
        "sampling_gmacs": counts.expectation(np.asarray(together)),
        "steps": counts.mean,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
