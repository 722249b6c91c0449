"""A results folder with an entropy model, gates of each kind, codes that were scored by the former, and a DPAR."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from dpar.data.shards import CodeRows
from dpar.experiment.settings import EntropyKind
from dpar.files import write_json
from dpar.model.variants import build_entropy_model, build_model, entropy_model_config
from dpar.train.scoring import score
from dpar.weights import model_config, save_model
from tests.train.tiny import CLASSES, GRID, VOCAB, Results, code_rows, experiment_values, write_codes

KINDS: dict[str, EntropyKind] = {
    "small": "unconditional",
    "distilled": "distilled",
    "null": "null_class",
    "same": "unconditional",
}
SIZES = {"vocab_size": VOCAB, "grid": GRID, "num_classes": CLASSES}
ORIGIN = {"tokenizer": "f" * 64}


def randomised_weights(network: nn.Module, seed: int) -> nn.Module:
    """The network with weights large enough for its predictions to vary."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
    return network.eval()


def write_results(folder: Path) -> Results:
    """All that calibrate_gate and compare_gates read; `same` is the entropy model itself."""
    results, values = Results(folder), experiment_values()
    network = values["entropy_model"]
    small = {"architecture": "llamagen", "width": 16, "heads": 1, "layers": 1}
    values["gates"] = {
        name: network | {"kind": kind} | ({} if name == "same" else {"model": small}) for name, kind in KINDS.items()
    }
    rows = [{"model": "dpar", "sampling.cfg_scale": 1}, {"model": "dpar", "inference.max_length": 2}]
    vary = {"inference.gate": [None, *KINDS]}
    values["tables"] = {"gates": {"title": "gates", "rows": rows, "vary": vary}}
    results.set(values)
    for number, (name, settings) in enumerate(results.experiment.networks.items()):
        gate = randomised_weights(
            build_entropy_model(entropy_model_config(settings, **SIZES)), 0 if name == "gates/same" else number
        )
        save_model(folder / name, gate, ORIGIN | {"gate": name.removeprefix("gates/")})
        if number == 0:
            entropy_model = gate
    sha256 = model_config(folder / "entropy_model")["sha256"]
    for split, seed, images, views in (("train", 0, 22, 2), ("val", 1, 6, 1)):
        codes = code_rows(seed, images=images, views=views, scored=False)
        entropy = score(entropy_model, codes.tokens, "unconditional")
        metadata = codes.metadata.model_copy(update={"entropy_model": sha256})
        write_codes(folder / "scored" / split, CodeRows(**vars(codes) | {"entropy": entropy, "metadata": metadata}))
        if split == "train":
            threshold = float(np.median(entropy[:, 1:]))
    write_json(folder / "thresholds.json", {"p_avg": {"1.6": {"threshold": threshold, "achieved": 1.6}}})
    dpar = randomised_weights(build_model(results.experiment.models["dpar"], **SIZES), 9)
    patches = {"patchify": results.experiment.patchify.model_dump(mode="json"), "threshold": threshold}
    origin = ORIGIN | patches | {"entropy_model": sha256, "precision": "float32", "step": 8}
    save_model(folder / "models" / "dpar" / "step8", dpar, origin)
    return results


def calibrate_flags(results: Results, gate: str) -> list[str]:
    """The flags of calibrate_gate, as the rule gives them."""
    paths = {
        "experiment": results.folder / "experiment.json",
        "gate": gate,
        "gate-folder": results.folder / "gates" / gate,
        "manifest": results.folder / "scored/train/manifest.json",
        "thresholds": results.folder / "thresholds.json",
        "output": results.folder / "gates" / f"{gate}.thresholds.json",
    }
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]
