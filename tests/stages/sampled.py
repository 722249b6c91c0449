"""A results folder with networks that were never trained, but whose predictions vary, small enough for a test."""

from pathlib import Path
from typing import Any

import torch

from dpar.experiment.loading import parse_experiment
from dpar.experiment.settings import Autoencoder
from dpar.files import read_json, write_json
from dpar.model.dpar import DPAR
from dpar.model.entropy_regressor import EntropyRegressor
from dpar.model.llamagen import LlamaGen
from dpar.sampling.networks import gate_thresholds
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.weights import model_config, save_model
from tests.stages.scored import write_experiment

GRID, VOCAB_SIZE, CLASSES = (4, 4), 64, 3
TOKENIZER = {"vocab_size": VOCAB_SIZE, "channels": 32, "multipliers": [1, 1], "residual_blocks": 1, "z_channels": 32}
SIZES = {"vocab_size": VOCAB_SIZE, "grid": GRID, "width": 32, "heads": 2}
PATCHIFY = {"p_avg": 1.8, "max_length": 3}
THRESHOLD = 3.4
GATE_THRESHOLDS = {"small": 3.7, "distilled": 4.0}


def write_results(results: Path, num_classes: int = CLASSES, **sampling: Any) -> Path:
    """Experiment, thresholds, tokenizer, entropy model, models/dpar/step1 and models/llamagen/step1."""
    torch.manual_seed(0)
    write_experiment(
        results,
        images={
            "source": "generated",
            "generated": {"train": 4, "val": 4},
            "resolution": 8,
            "num_classes": num_classes,
        },
        tokenizer={**TOKENIZER, "attention": False, "training": {"steps": 1, "perceptual_weight": 0}},
        patchify=PATCHIFY,
        sampling={"num_images": 10, "batch_size": 4, "precision": "float32", **sampling},
        tables={
            "main": {
                "title": "all models",
                "rows": [
                    {"model": "dpar"},
                    {"model": "llamagen"},
                    {"model": "dpar", "inference.threshold": 2.5},
                    {"model": "dpar", "inference.strategy": "static", "inference.p_avg": 2},
                ],
            }
        },
    )
    write_json(results / "thresholds.json", {"p_avg": {"1.8": {"threshold": THRESHOLD, "achieved": 1.8}}})
    save_model(results / "tokenizer", VQAutoencoder(Autoencoder(**TOKENIZER, attention=False)), {})
    tokenizer = model_config(results / "tokenizer")["sha256"]
    write_model(results / "entropy_model", LlamaGen(LlamaGen.Config(layers=1, **SIZES)), {"tokenizer": tokenizer})
    known = {"tokenizer": tokenizer, "entropy_model": model_config(results / "entropy_model")["sha256"], "step": 1}
    patches = {"patchify": {"strategy": "dynamic", **PATCHIFY}, "threshold": THRESHOLD}
    dpar = DPAR(DPAR.Config(layers=1, decoder_layers=1, num_classes=num_classes, **SIZES))
    write_model(results / "models" / "dpar" / "step1", dpar, known | patches)
    llamagen = LlamaGen(LlamaGen.Config(layers=2, num_classes=num_classes, **SIZES))
    write_model(results / "models" / "llamagen" / "step1", llamagen, known | {"patchify": None, "threshold": None})
    return results


def add_gates(results: Path) -> None:
    """Adds gates/small and gates/distilled, their thresholds, and a row of samples through each."""
    path = results / "experiment.json"
    values = read_json(path)
    sizes = {"architecture": "llamagen", "width": 16, "heads": 1, "layers": 1}
    values["gates"] = {"small": {"model": sizes, "training": {"steps": 1}}}
    values["gates"]["distilled"] = values["gates"]["small"] | {"kind": "distilled"}
    values["tables"]["gates"] = {
        "title": "gates",
        "rows": [{"model": "dpar"}],
        "vary": {"inference.gate": [None, *values["gates"]]},
    }
    write_json(path, parse_experiment(values, "the test").model_dump(mode="json"))
    known = {name: model_config(results / name)["sha256"] for name in ("tokenizer", "entropy_model")}
    small, inner = results / "gates" / "small", SIZES | {"width": 16, "heads": 1, "layers": 1}
    write_model(small, LlamaGen(LlamaGen.Config(**inner)), {"tokenizer": known["tokenizer"], "gate": "small"})
    regressor = EntropyRegressor(EntropyRegressor.Config(**inner))
    write_model(results / "gates" / "distilled", regressor, known | {"gate": "distilled"})
    for gate, threshold in GATE_THRESHOLDS.items():
        folder = results / "gates" / gate
        rule = {"patchify": {"strategy": "dynamic", **PATCHIFY}, "threshold": threshold}
        write_json(gate_thresholds(folder), {"gate": model_config(folder)["sha256"], "rules": [rule]})


def write_model(folder: Path, model: torch.nn.Module, provenance: dict[str, Any]) -> None:
    """Saves the model with weights large enough for its predictions to vary (a new head is zero)."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    save_model(folder, model, provenance)
