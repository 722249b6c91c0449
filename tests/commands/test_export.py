"""`dpar export`: a folder that draws where nothing else is, with a card that says what was measured."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dpar
from dpar import tracking
from dpar.commands import export, sample
from dpar.errors import InputError
from dpar.files import read_json, sha256_file, write_json
from dpar.tracking.makers import accept
from dpar.weights import model_config, write_tensors
from tests.stages.sampled import write_results


def measured(results: Path, model: str, seed: int) -> dict:
    """What compute_metrics writes, as far as a card shows it."""
    described = model_config(results / "models" / model / "step1")
    drawn = {"networks": {"model": described["sha256"]}, "cell": model, "seed": seed, "step": 1, "threshold": 3.4}
    drawn |= {"patchify": {"max_length": 3}, "sampling": {"cfg_scale": 2.0, "temperature": 1.0, "num_images": 10}}
    conditions = {"samples": 10, "reference_samples": 40, "reference": "train", "drawn": drawn, "resolution": 8}
    return {
        "metric": "FD[classifier,4]",
        "values": dict.fromkeys(("inception_score", "recall", "class_agreement"))
        | {"frechet_distance": 1.0 + seed, "precision": 0.5},
        "conditions": conditions | {"extractor": "classifier", "extractor_sha256": "c" * 64},
        "warnings": ["few images"],
        "comparable_to_published": False,
        "comparable_reason": "10 samples, not 50,000",
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results with two models, of which `dpar` was trained, sampled and measured by recorded jobs."""
    results = write_results(tmp_path_factory.mktemp("work") / "results" / "tiny")
    folder, experiment = results / "models/dpar/step1", results / "experiment.json"
    index = {"source": "folder", "path": "photos", "count": 4, "num_classes": 3, "digest": "feed"}
    with tracking.job(rule="index_images", experiment=experiment, outputs=[results / "index/train.json"]):
        write_json(results / "index/train.json", index)
    with tracking.job(
        rule="train_model",
        name="train_model[dpar/step1]",
        experiment=experiment,
        inputs=[results / "index/train.json"],
        outputs=[folder],
    ):
        pass
    other = results / "models/llamagen/step1"
    with tracking.job(rule="train_model", name="train_model[llamagen/step1]", experiment=experiment, outputs=[other]):
        pass
    metrics = [results / f"metrics/dpar/seed{seed}.json" for seed in (0, 1)]
    for seed, path in enumerate(metrics):
        name = f"compute_metrics[dpar,seed{seed}]"
        with tracking.job(rule="compute_metrics", name=name, experiment=experiment, inputs=[folder], outputs=[path]):
            write_json(path, measured(results, "dpar", seed))
    likelihood = {"nll": 3.25, "mean_patch_length": 1.6, "images": 4, "tokens": 64, "precision": "float32"}
    measure, path = "evaluate_likelihood", results / "likelihood/dpar/step1.json"
    with tracking.job(rule=measure, name=f"{measure}[dpar/step1]", experiment=experiment, outputs=[path]):
        write_json(path, {"model": model_config(folder)["sha256"]} | likelihood)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(results / "grid.png")
    drawn, rule = results / "samples/dpar/seed0/00000.png", "sample_images"
    drawn.parent.mkdir(parents=True)
    with tracking.job(rule=rule, name=f"{rule}[dpar/seed0/0]", experiment=experiment, outputs=[drawn]):
        shutil.copy(results / "grid.png", drawn)
    with tracking.job(rule="make_table", experiment=experiment, inputs=metrics, outputs=[results / "t.csv"]) as job:
        (results / "t.csv").write_text("fd\n1.5\n")
        job.result(table="t", cell="dpar", params={}, metrics={"eval/frechet_distance": 1.5}, sources=metrics)
    return results


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


NETWORK = ["config.json", "model.safetensors"]


def test_the_folder_draws_without_the_results(results, tmp_path, capsys):
    out = tmp_path / "out"
    export.main([str(results / "models/dpar/step1"), str(out)])
    assert f"next: dpar sample --checkpoint {out} --labels 0" in capsys.readouterr().out
    inside = [f"{network}/{name}" for network in ("entropy_model", "tokenizer") for name in NETWORK]
    assert files_in(out) == sorted(["README.md", "experiment.json", "export.json", "samples.png", *NETWORK, *inside])

    away = tmp_path / "elsewhere" / "model"
    shutil.copytree(out, away)
    shutil.rmtree(out)
    flags = ["--labels", "2,0", "--n", "4", "--json"]
    sample.main(["--checkpoint", str(results / "models/dpar/step1"), *flags, "--out", str(tmp_path / "a.png")])
    before = json.loads(capsys.readouterr().out)
    # a process that sees only the copy, and whose every connection would fail
    line = "import socket; socket.socket.connect = None; from dpar.cli import main; raise SystemExit(main())"
    alone = subprocess.run(
        [sys.executable, "-c", line, "sample", "--checkpoint", "model", *flags, "--out", "b.png"],
        cwd=away.parent, env={**os.environ, "PYTHONPATH": str(Path(dpar.__file__).parents[1])},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    after = json.loads(alone.stdout)
    assert (after["networks"], after["patches"]) == (before["networks"], before["patches"])
    assert np.array_equal(np.asarray(Image.open(away.parent / "b.png")), np.asarray(Image.open(tmp_path / "a.png")))
    assert dpar.Generator.from_pretrained(away)([1]).shape == (1, 8, 8, 3)
    assert dpar.DPAR.from_pretrained(away).config.num_classes == 3


def test_the_card_has_the_metrics_of_these_weights_with_their_conditions(results, tmp_path):
    export.main([str(results / "models/dpar/step1"), str(tmp_path / "out")])
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: dpar\n")
    assert "It draws images of 8 x 8 pixels from 4 x 4 tokens, of 3 classes." in card
    parameters = sum(p.numel() for p in dpar.DPAR.from_pretrained(tmp_path / "out").parameters())
    assert f"DPAR, {parameters:,} parameters" in card
    assert "3.2500 nats per token over 4 images (64 tokens)" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code
    exec(code[1].replace("FOLDER", str(tmp_path / "out")), found := {})
    assert found["images"].shape == (2, 8, 8, 3)
    assert "| FD[classifier,4]" in card
    assert "| 1.50 ± 0.71" in card
    for line in (
        "FD[classifier,4]: 10 samples against 40 images of `train`, feature network `classifier` (`cccccccccccc`)",
        "Drawn at step 1, seeds 0, 1, with cfg_scale 2.0, temperature 1.0.",
        "Warning: few images",
        "Not comparable to published numbers: 10 samples, not 50,000",
        f"weights: `model.safetensors`, sha256 `{model_config(results / 'models/dpar/step1')['sha256']}`",
        "images: index/train.json: source folder, path photos, count 4, num_classes 3, digest feed",
        "code: commit ",
    ):
        assert f"- {line}" in card
    assert str(results) not in card

    export.main([str(results / "models/llamagen/step1"), str(tmp_path / "other")])
    other = (tmp_path / "other/README.md").read_text()
    assert "Nothing: the results that this model lies in hold no measurement of these weights." in other
    assert "LlamaGen" in other
    assert not (tmp_path / "other/entropy_model").exists()


def test_names_of_classes_go_along(results, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "results" / "demo")
    named = tmp_path / "results" / "demo"
    (named / "index").mkdir(exist_ok=True)
    (named / "index" / "train.json").write_text('{\n"classes": ["tulips","red roses","daisy"],\n"labels": []\n}\n')
    export.main([str(named / "models" / "dpar" / "step1"), str(tmp_path / "out")])
    assert "--labels tulips --n 8" in capsys.readouterr().out
    assert model_config(tmp_path / "out")["provenance"]["classes"] == ["tulips", "red roses", "daisy"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--labels 'tulips,red roses' --n 16" in card
    assert "\n```\n0 tulips\n1 red roses\n2 daisy\n```\n" in card
    shutil.rmtree(named)
    generator = dpar.Generator.from_pretrained(tmp_path / "out")
    assert np.array_equal(generator(["daisy", "tulips"]), generator([2, 0]))
    with pytest.raises(InputError, match=r"no class 'rose'; did you mean red roses\?"):
        generator(["rose"])


def test_an_export_can_be_exported(results, tmp_path):
    first, again, half = (tmp_path / name for name in ("first", "again", "half"))
    export.main([str(results / "models/dpar/step1"), str(first)])
    export.main([str(first), str(again)])
    export.main([str(again), str(half), "--half"])
    assert files_in(again) == files_in(half) == files_in(first)
    for name in ("model.safetensors", "samples.png", "experiment.json"):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    measured, card = model_config(first)["sha256"], (first / "README.md").read_text()
    assert "| 1.50 ± 0.71" in card
    assert (again / "README.md").read_text() == card.replace("# dpar/step1", f"# {tmp_path.name}/first")
    line = f"- weights: `model.safetensors`, sha256 `{measured}`"
    rounded = f"- weights: `model.safetensors`, sha256 `{model_config(half)['sha256']}`, rounded to half precision from"
    rounded = card.replace(line, f"{rounded} `{measured}`, which were measured")
    assert (half / "README.md").read_text().split("## Settings")[0].split("## Use")[1] in rounded
    (first / "README.md").unlink()
    export.main([str(first), str(tmp_path / "other")])
    assert "no records of a run" in (tmp_path / "other/README.md").read_text()


@pytest.mark.parametrize("files", [{"config.json": 12}, {"config.json": None}, ["config.json"], None])
def test_a_list_of_an_export_that_is_none_is_one_line(results, tmp_path, files):
    export.main([str(results / "models/dpar/step1"), str(tmp_path / "out")])
    write_json(tmp_path / "out/export.json", {"files": files})
    with pytest.raises(InputError, match=r"export\.json lacks a field, or has another than expected \(files"):
        dpar.Generator.from_pretrained(tmp_path / "out")


def test_a_run_of_the_dashboard_stands_for_its_model(results, tmp_path, monkeypatch):
    asked = []

    def model(store, run):
        asked.append((store.results, run))
        return results / "models/dpar/step1"

    monkeypatch.setattr(export, "model_of_run", model)
    export.main(["5" * 32, str(tmp_path / "out"), "--results", str(results)])
    assert asked == [(results, "5" * 32)]
    assert model_config(tmp_path / "out")["sha256"] == model_config(results / "models/dpar/step1")["sha256"]


def test_a_mistyped_folder_and_a_run_of_no_store_make_nothing(results, tmp_path, monkeypatch):
    monkeypatch.delenv("DPAR_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(results, "results/demo")
    before = files_in(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder results/demo/models/dparr/step1, and a run's id is 32"):
        export.main(["results/demo/models/dparr/step1", "out"])
    with pytest.raises(InputError, match=r"there is no tracking store .*mlflow\.db yet; run `dpar track sync`"):
        export.main(["5" * 32, "out"])
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("network", ["models/dpar/step1", "tokenizer", "entropy_model"])
def test_weights_that_are_missing_are_named_before_anything_is_made(results, tmp_path, network):
    copy = tmp_path / "results/demo"
    shutil.copytree(results, copy)
    (copy / network / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=rf"{network}/model\.safetensors is missing; copy the whole folder, or run again"
    ):
        export.main([str(copy / "models/dpar/step1"), str(tmp_path / "new/folder/out")])
    assert not (tmp_path / "new").exists()


def test_what_cannot_draw_or_is_damaged_is_refused_and_leaves_nothing(results, tmp_path):
    def refused(what: Path, message: str, out: str = "out") -> None:
        with pytest.raises(InputError, match=message):
            export.main([str(what), str(tmp_path / out)])
        assert files_in(tmp_path) == before

    before = files_in(tmp_path)
    refused(results / "entropy_model", "holds a llamagen that draws no classes")
    refused(results / "tokenizer", "holds a tokenizer that draws no classes")
    refused(results / "models", r"is no model folder: it has no config\.json")
    broken = tmp_path / "results/demo/models/dpar/step1"
    shutil.copytree(results, tmp_path / "results/demo")
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)
    before = files_in(tmp_path)
    refused(broken, r"is not what train_model\[dpar/step1\] left")
    tokenizer = tmp_path / "results/demo/tokenizer/config.json"
    write_json(broken / "config.json", read_json(broken / "config.json") | {"sha256": "0" * 64})
    (tmp_path / "taken").mkdir()
    refused(broken, "taken is there already; give a new folder", "taken")
    shutil.copy(results / "models/dpar/step1/model.safetensors", broken)
    shutil.copy(results / "models/dpar/step1/config.json", broken)
    write_json(tokenizer, read_json(tokenizer) | {"sha256": "1" * 64})
    before = files_in(tmp_path)
    refused(broken, "made with another tokenizer")


def test_a_picture_that_was_exchanged_is_not_put_on_the_card(results, tmp_path):
    picture, folder = results / "samples/dpar/seed0/00000.png", results / "models/dpar/step1"
    experiment = results / "experiment.json"
    with tracking.job(
        rule="sample_images", name="sample_images[dpar/seed0/0]", experiment=experiment, outputs=[picture]
    ):
        pass
    whole = picture.read_bytes()
    export.main([str(folder), str(tmp_path / "good")])
    Image.new("RGB", (8, 8)).save(picture)
    try:
        with pytest.raises(InputError, match=r"00000\.png is not what sample_images\[dpar/seed0/0\] left"):
            export.main([str(folder), str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
    finally:
        picture.write_bytes(whole)


def test_half_precision_halves_the_folder_and_draws_the_same_kind_of_pictures(results, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    export.main([str(results / "models/dpar/step1"), str(whole)])
    export.main([str(results / "models/dpar/step1"), str(half), "--half"])
    measured = model_config(whole)["sha256"]
    for network in ("", "tokenizer", "entropy_model"):
        exact, rounded = (load_file(folder / network / "model.safetensors") for folder in (whole, half))
        assert {tensor.dtype for tensor in rounded.values()} == {torch.float16}
        for name, tensor in exact.items():
            torch.testing.assert_close(rounded[name].float(), tensor, rtol=2**-11, atol=2**-25)
        origin = model_config(half / network)["provenance"]
        assert origin["rounded_from"] == model_config(whole / network)["sha256"]
    export.main([str(half), str(tmp_path / "again"), "--half"])
    assert model_config(tmp_path / "again")["provenance"]["rounded_from"] == measured
    # the networks belong together, by their new digests
    drawn = dpar.Generator.from_pretrained(half)([1, 2]).astype(int)
    assert np.abs(drawn - dpar.Generator.from_pretrained(whole)([1, 2])).mean() < 64
    card = (half / "README.md").read_text()
    line = f"weights: `model.safetensors`, sha256 `{model_config(half)['sha256']}`, rounded to half precision from"
    assert f"- {line} `{measured}`, which were measured" in card
    assert "3.2500 nats per token" in card


def test_weights_too_large_for_half_precision_are_refused_and_leave_nothing(results, tmp_path):
    copy = tmp_path / "results/demo"
    shutil.copytree(results, copy)
    folder = copy / "models/dpar/step1"
    tensors = load_file(folder / "model.safetensors")
    tensors["start"][0] = 1e6
    write_tensors(folder / "model.safetensors", tensors)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"sha256": sha256_file(folder / "model.safetensors")})
    accept(copy, [folder])
    export.main([str(folder), str(tmp_path / "whole")])
    with pytest.raises(InputError, match=r"in half precision, has weights .* too large .*without --half \(1 of the 32"):
        export.main([str(folder), str(tmp_path / "half"), "--half"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "whole"]


def test_the_card_credits_the_images_of_the_experiment(results, tmp_path):
    copy = tmp_path / "results/demo"
    shutil.copytree(results, copy)
    settings = read_json(copy / "experiment.json")
    for text in (None, "Photos of A. Nyone, CC BY 4.0."):
        settings["images"] |= {"credits": text}
        write_json(copy / "experiment.json", settings)
        export.main([str(copy / "models/dpar/step1"), str(tmp_path / f"{text}")])
        card = (tmp_path / f"{text}/README.md").read_text()
        assert ("## Images and licence\n\nPhotos of A. Nyone, CC BY 4.0.\n" in card) == (text is not None)
