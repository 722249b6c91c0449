"""Stages as on a GPU: they leave what they leave on a CPU, and trainings wait for nothing within a step."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpar.data.shards import read_shard, write_shard
from dpar.evaluation.classifier import fit_classifier
from dpar.evaluation.features import load_features
from dpar.files import read_json
from dpar.stages import (
    encode_images,
    evaluate_likelihood,
    evaluate_tokenizer,
    extract_features,
    linear_probe,
    score_entropies,
    train_classifier,
    train_model,
)
from dpar.tokenizer import trainer
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.tokenizer.discriminator import PatchGAN
from dpar.tokenizer.trainer import TokenizerTrainer, train_tokenizer
from dpar.train.distributed import Ranks
from dpar.weights import load_model, save_model
from tests.evaluation import tiny as evaluated
from tests.rehearsal import Log, rehearsing
from tests.stages import gated, tokenizers
from tests.tokenizer import tiny as tokenized
from tests.train.tiny import Results, code_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))


def run(stage: Callable, **flags: object) -> None:
    """The stage with these flags."""
    stage.main([word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))])


def on_both(stage: Callable, output: str, path: Path, **flags: object) -> tuple[Path, Path, Log]:
    """What the stage leaves on a CPU and on a GPU, under one name in two folders, and the log of the latter."""
    here, there = path / "cpu" / output, path / "gpu" / output
    run(stage, **flags, output=here)
    with rehearsing() as gpu, gpu.logging() as log:
        run(stage, **flags, output=there)
    assert log.launches > 0, "nothing was computed on the GPU"
    return here, there, log


def assert_same_weights(here: Path, there: Path, kind: str) -> None:
    """Two model folders hold the same to the bit."""
    a, b = (load_model(folder, kind).state_dict() for folder in (here, there))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def tokenizer(folder: Path) -> Path:
    """The folder of an untrained tokenizer."""
    torch.manual_seed(0)
    save_model(folder / "tokenizer", VQAutoencoder(VQAutoencoder.Config.model_validate(tokenizers.SIZES)), {})
    return folder / "tokenizer"


def test_encoding(tmp_path, monkeypatch):
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(encode_images._PIXELS, device, 2**14)
    here, there, _ = on_both(
        encode_images, "0.parquet", tmp_path, experiment=tokenizers.write_tokenizer_experiment(tmp_path), split="train",
        shard=0, index=tokenizers.write_index(tmp_path, "train", 12), tokenizer=tokenizer(tmp_path),
    )  # fmt: skip
    np.testing.assert_array_equal(read_shard(here).tokens, read_shard(there).tokens)


def test_scoring(tmp_path):
    results = gated.write_results(tmp_path / "results")
    shard = tmp_path / "0.parquet"
    write_shard(shard, code_rows(scored=False))
    given = {"experiment": results.folder / "experiment.json", "shard": shard}
    here, there, _ = on_both(
        score_entropies, "1.parquet", tmp_path, **given, entropy_model=results.folder / "entropy_model"
    )
    # norms without gradients are computed another way on a CPU
    np.testing.assert_allclose(read_shard(here).entropy, read_shard(there).entropy, rtol=1e-5)


def test_measuring_a_tokenizer(tmp_path):
    config = {"resolution": tokenizers.SIDE, "num_classes": 2, "channels": 4, "dims": 4}
    torch.manual_seed(0)
    save_model(tmp_path / "classifier", fit(config, torch.device("cpu")), {})
    flags = {
        "extractor": tmp_path / "classifier", "experiment": tokenizers.write_tokenizer_experiment(tmp_path),
        "tokenizer": tokenizer(tmp_path), "index": tokenizers.write_index(tmp_path, "val", 7),
    }  # fmt: skip
    run(evaluate_tokenizer, **flags, report=tmp_path / "cpu.json", picture=tmp_path / "cpu.png")
    with rehearsing() as gpu, gpu.logging() as log:
        run(evaluate_tokenizer, **flags, report=tmp_path / "gpu.json", picture=tmp_path / "gpu.png")
    assert log.launches > 0
    assert (tmp_path / "gpu.png").read_bytes() == (tmp_path / "cpu.png").read_bytes()
    here, there = (read_json(tmp_path / f"{name}.json") for name in ("cpu", "gpu"))
    assert {name: here[name] for name in ("psnr", "ssim")} == {name: there[name] for name in ("psnr", "ssim")}


def test_likelihood_and_probe(tmp_path):
    results = Results.make(tmp_path / "tiny")
    train_model.main(results.train_model("dpar"))
    folder, codes = results.folder / "models/dpar/step8", results.folder / "scored"
    given = {"experiment": results.folder / "experiment.json", "model_folder": folder}
    here, there, _ = on_both(evaluate_likelihood, "nll.json", tmp_path, **given, manifest=codes / "val/manifest.json")
    assert read_json(there)["nll"] == pytest.approx(read_json(here)["nll"], rel=1e-6)
    flags = {f"{split}": codes / split / "manifest.json" for split in ("train", "val")}
    here, there, _ = on_both(linear_probe, "probe.json", tmp_path, **given, **flags)
    assert read_json(here)["top1"] == read_json(there)["top1"]


def test_training_a_classifier_and_its_features(tmp_path):
    train, val = (evaluated.write_index(tmp_path, split, count) for split, count in (("train", 12), ("val", 5)))
    experiment = evaluated.write_experiment(tmp_path)
    here, there, _ = on_both(
        train_classifier, "classifier", tmp_path, experiment=experiment, train_index=train, val_index=val
    )
    assert_same_weights(here, there, "classifier")
    flags = {"experiment": experiment, "extractor": here, "images": val}
    here, there, _ = on_both(extract_features, "features.npz", tmp_path, **flags)
    np.testing.assert_array_equal(load_features(here).features, load_features(there).features)


def fit(config: dict, device: torch.device, steps: int = 4):
    """A classifier of noise."""
    generator = torch.Generator().manual_seed(0)
    side = config["resolution"]
    images = torch.randint(0, 256, (12, 3, side, side), generator=generator, dtype=torch.uint8)
    how = {"steps": steps, "batch_size": 4, "learning_rate": 0.01, "seed": 0, "device": device}
    network = evaluated.ImageClassifier.Config(**config)
    return fit_classifier(images, torch.arange(12) % config["num_classes"], network, **how)


def test_a_step_of_a_classifier_waits_for_nothing():
    config = {"resolution": 16, "num_classes": 3, "channels": 4, "dims": 4}
    waits = []
    for steps in (2, 6):
        with rehearsing() as gpu, gpu.logging() as log:
            fit(config, torch.device("cuda"), steps)
        waits.append(log.waits.total())
    assert waits[0] == waits[1] > 0, "the weights are uploaded once"


def test_training_a_tokenizer(tmp_path, monkeypatch):
    """With a critic; codes out of use are looked for now and then, which is a wait."""
    monkeypatch.setattr(PatchGAN, "WIDTHS", (8, 8, 8, 8))
    monkeypatch.setattr(trainer, "RESTART_EVERY", 3)
    changes = {"steps": 5, "adversarial_weight": 0.5, "adversarial_start": 2}
    alone = Ranks(torch.device("cpu"))
    expected = train_tokenizer(
        tokenized.tiny_task(tmp_path / "a", **changes), tmp_path / "cpu", alone, tokenized.Recorder()
    )
    logs: list[Log] = []
    advance = TokenizerTrainer._advance
    with rehearsing() as gpu, monkeypatch.context() as patched:

        def logged(training, pixels):
            with gpu.logging() as log:
                advance(training, pixels)
            logs.append(log)

        patched.setattr(TokenizerTrainer, "_advance", logged)
        task = tokenized.tiny_task(tmp_path / "b", **changes)
        task.model.to("cuda")
        found = train_tokenizer(task, tmp_path / "gpu", Ranks(torch.device("cuda")), tokenized.Recorder())
        weights = {name: tensor.cpu() for name, tensor in found.state_dict().items()}
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert len(logs) == 5
    for step, log in enumerate(logs, 1):
        if step % 3 != 1:
            assert not log.waits + log.hidden, step
