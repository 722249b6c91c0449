"""The stage from its flags to its folder: milestones, provenance, refusals, signals, ranks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.data.classes import Classes
from dpar.data.shards import CodeRows
from dpar.errors import InputError
from dpar.experiment.loading import load_experiment
from dpar.files import read_json
from dpar.model.variants import build_model
from dpar.stages import train_model
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.tracking import lineage
from dpar.weights import load_model, model_config, save_model
from dpar.workflow.recipes import ARCHITECTURES
from tests.train.tiny import (
    GRID,
    VOCAB,
    Results,
    code_rows,
    experiment_values,
    history,
    transformer,
    write_codes,
)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    return Results.make(tmp_path / "tiny")


def events(results, rule="train_model"):
    """What all jobs of the rule were told, in order of their folders."""
    paths = sorted((results.folder / "tracking" / "spool" / rule).glob("*/events.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


@pytest.mark.parametrize("model", ["dpar", "llamagen"])
def test_the_folder_holds_the_network_its_curves_and_what_it_was_made_from(results, model):
    train_model.main(results.train_model(model))
    folder = results.folder / "models" / model / "step8"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "history.jsonl", "model.safetensors"]
    assert load_model(folder, model, "cpu").config.vocab_size == VOCAB
    origin = model_config(folder)["provenance"]
    assert (origin["tokenizer"], origin["entropy_model"], origin["step"]) == ("f" * 64, "e" * 64, 8)
    assert origin["grid"] == [4, 4]
    assert origin["threshold"] == (2.0 if model == "dpar" else None)
    assert (origin["patchify"] is None) == (model == "llamagen")
    points = history(folder)
    assert sorted(points) == [2, 4, 6, 8]
    assert "val/nll" in points[8]


def test_the_folder_keeps_the_names_of_the_classes(results, tmp_path):
    index = tmp_path / "train.json"
    settings = read_json(results.folder / "experiment.json")
    count = settings["images"]["num_classes"]
    names = ["<b>"] + [None] * (count - 1)
    index.write_text("\n".join(["{", f'"classes": {json.dumps(names)}', "}"]))
    train_model.main([*results.train_model("llamagen"), "--classes", str(index)])
    folder = results.folder / "models" / "llamagen" / "step8"
    described = model_config(folder)
    assert described["provenance"]["classes"] == names
    assert Classes.of_model(folder, described).labels("<b>") == [0]


def test_the_job_is_told_curves_and_commits_and_ends_well(results):
    train_model.main(results.train_model())
    (told,) = events(results)
    assert [e["step"] for e in told if e["event"] == "metrics"] == [2, 4, 6, 8]
    assert [e["step"] for e in told if e["event"] == "commit"] == [0, 2, 4, 6, 8]
    assert told[-1]["event"] == "end"
    assert told[-1]["status"] == "FINISHED"
    values = {name for e in told if e["event"] == "metrics" for name in e["values"]}
    assert values >= {
        "train/loss", "train/grad_norm", "val/nll", "patch/mean_length", "patch/per_image",
        "perf/tokens_per_s", "perf/images_per_s", "perf/step_ms", "perf/memory_gib", "perf/devices",
    }  # fmt: skip


def networks_of(results):
    """A tokenizer and an entropy model of these sizes, and codes that name them; the stage's flags for them."""
    save_model(results.folder / "tokenizer", build_tokenizer(results), {})
    gate = build_model(transformer("unconditional"), vocab_size=VOCAB, grid=GRID, num_classes=None)
    save_model(results.folder / "entropy_model", gate, {})
    known = {name: model_config(results.folder / name)["sha256"] for name in ("tokenizer", "entropy_model")}
    for split, rows in (("train", code_rows()), ("val", code_rows(1, images=6, views=1))):
        metadata = rows.metadata.model_copy(update=known)
        write_codes(results.folder / "scored" / split, CodeRows(**(vars(rows) | {"metadata": metadata})))
    return [f"--{name.replace('_', '-')}={results.folder / name}" for name in known]


def build_tokenizer(results, seed=0):
    torch.manual_seed(seed)
    return VQAutoencoder(load_experiment(results.folder / "experiment.json").tokenizer.autoencoder)


def test_samples_of_each_checkpoint_are_drawn_where_the_tokenizer_is_given(results):
    more = networks_of(results)
    train_model.main([*results.train_model(), *more])
    (told,) = events(results)
    pictures = [e for e in told if e["event"] == "image"]
    assert [(e["key"], e["step"]) for e in pictures] == [("samples", step) for step in (2, 4, 6, 8)]
    (spool,) = (results.folder / "tracking/spool/train_model").iterdir()
    sheets = [np.asarray(Image.open(spool / e["file"])) for e in pictures]
    assert all(sheet.shape == (2 * 32 + 2, 8 * 32 + 7 * 2, 3) for sheet in sheets)
    assert not np.array_equal(sheets[0], sheets[-1])
    read = {Path(artefact["path"]).parent.name for artefact in told[0]["inputs"]}
    assert {"tokenizer", "entropy_model"} <= read
    save_model(results.folder / "tokenizer", build_tokenizer(results, seed=1), {})
    with pytest.raises(InputError, match="is not what made"):
        train_model.main([*results.train_model(), *more])


def test_milestones_follow_one_another_from_one_state(results):
    results.set(experiment_values(milestones=[3, 6]))
    for previous, milestone in pairwise([None, "step3", "step6", "step8"]):
        assert milestone
        train_model.main(results.train_model("dpar", milestone, previous=previous))
    steps = [[e["step"] for e in told if e["event"] == "commit"] for told in events(results)]
    assert steps == [[0, 2, 3], [3, 4, 6], [6, 8]]
    results.set(experiment_values())
    shutil.rmtree(results.folder / "state")
    whole = (results.folder / "models/dpar/step8/model.safetensors").read_bytes()
    train_model.main(results.train_model("dpar", "step8"))
    assert (results.folder / "models/dpar/step8/model.safetensors").read_bytes() == whole


def trainings_before(results, milestone):
    """The trainings that the lineage of a state of the DPAR names, last first."""
    text = lineage.of_file(results.folder / "models/dpar" / milestone)
    return re.findall(r"<- train_model\[dpar/(\S+)\]", text)


def test_a_milestone_leads_back_to_those_before_it(results):
    results.set(experiment_values(milestones=[3, 6]))
    for previous, milestone in pairwise([None, "step3", "step6", "step8"]):
        assert milestone
        train_model.main(results.train_model("dpar", milestone, previous=previous))
    assert trainings_before(results, "step8") == ["step8", "step6", "step3"]


def test_a_milestone_that_is_wanted_later_is_no_part_of_the_training_that_was_finished(results):
    train_model.main(results.train_model())
    results.set(experiment_values(milestones=[4]))
    train_model.main([*results.train_model("dpar", "step4"), "--restart"])
    train_model.main(results.train_model("dpar", "step8", previous="step4"))
    assert trainings_before(results, "step4") == ["step4"]
    assert trainings_before(results, "step8") == ["step8"], "the state was kept: nothing went on from step 4"


def test_epochs_are_counted_in_whole_batches(results):
    results.set(experiment_values(steps=None, epochs=2, milestones=[1]))
    train_model.main(results.train_model("llamagen", "epoch1"))
    assert model_config(results.folder / "models/llamagen/epoch1")["provenance"]["step"] == 22 // 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--model", "dpr"], "no such model; this experiment has dpar, llamagen"),
        (["--milestone", "step7"], "dpar keeps step8"),
        (["--train", "nowhere/manifest.json"], "nowhere/manifest.json"),
    ],
)
def test_wrong_flags_are_refused_by_name(results, change, expected):
    with pytest.raises(InputError, match=expected):
        train_model.main(results.train_model() + change)
    assert not (results.folder / "models").exists()


def test_codes_without_entropies_are_refused_for_dpar_and_do_for_the_baseline(results):
    plain = ["--train", str(results.folder / "codes/train/manifest.json")]
    plain += ["--val", str(results.folder / "codes/val/manifest.json")]
    with pytest.raises(InputError, match="hold no entropies"):
        train_model.main(results.train_model("dpar") + plain)
    train_model.main(results.train_model("llamagen") + plain)


def test_codes_of_another_tokenizer_are_refused(results):
    rows = code_rows(1, images=6, views=1)
    other = rows.metadata.model_copy(update={"tokenizer": "0" * 64})
    manifest = write_codes(results.folder / "other", type(rows)(**(vars(rows) | {"metadata": other})))
    with pytest.raises(InputError, match="tokenizer"):
        train_model.main([*results.train_model(), "--val", str(manifest)])


def test_changed_settings_are_refused_or_begin_anew(results):
    train_model.main(results.train_model())
    before = (results.folder / "models/dpar/step8/model.safetensors").read_bytes()
    results.set(experiment_values(learning_rate=1e-3))
    with pytest.raises(InputError, match="--restart"):
        train_model.main(results.train_model())
    train_model.main([*results.train_model(), "--restart"])
    assert (results.folder / "models/dpar/step8/model.safetensors").read_bytes() != before


def test_a_state_of_other_code_of_the_model_is_set_aside_and_that_of_another_architecture_goes_on(results, monkeypatch):
    train_model.main(results.train_model())
    monkeypatch.setitem(ARCHITECTURES, "llamagen", 2)
    train_model.main(results.train_model())
    monkeypatch.setitem(ARCHITECTURES, "dpar", 2)
    with pytest.raises(InputError, match="--restart"):
        train_model.main(results.train_model())


def command(results, *more, launcher=()):
    """The stage as the rule starts it."""
    module = [*launcher, "-m", "dpar.stages.train_model"]
    return [sys.executable, *module, *results.train_model("dpar", "step200", *more)]


def test_a_terminated_process_exits_with_75_and_goes_on(results):
    results.set(experiment_values(steps=200, checkpoint_every=100))
    process = subprocess.Popen(command(results), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait(60) == 75, said
    assert "stopped on request and saved after step" in said
    assert events(results)[0][-1]["status"] == "KILLED"
    train_model.main(results.train_model("dpar", "step200"))
    (told,) = events(results)
    steps = [e["step"] for e in told if e["event"] == "metrics"]
    assert steps == list(range(2, 201, 2))
    assert told[-1]["status"] == "FINISHED"


def test_a_training_outlives_the_reader_of_its_log(results):
    results.set(experiment_values(steps=200, checkpoint_every=2))
    process = subprocess.Popen(command(results), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    state = results.folder / "state/models/dpar"
    while process.poll() is None and not (state / "step00000006.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert events(results)[0][-1]["status"] == "KILLED"


@pytest.mark.slow
def test_torchrun_trains_on_two_ranks_as_on_one(results):
    sizes = experiment_values(steps=200)
    for model in sizes["models"].values():
        model["dropout"] = 0.0
    sizes["training"] |= {"steps": 4, "checkpoint_every": 2}
    results.set(sizes)
    flags = results.train_model("dpar", "step4")
    line = [sys.executable, "-m", "dpar.workflow.launch", "--gpus", "2", "dpar.stages.train_model", *flags]
    subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    two = history(results.folder / "models/dpar/step4")
    shutil.rmtree(results.folder / "state")
    train_model.main(flags)
    one = history(results.folder / "models/dpar/step4")
    assert one.keys() == two.keys()
    for rows in (one, two):
        rows[4].pop("made_by")
    assert all(two[step] == pytest.approx(one[step], rel=1e-5) for step in one)
    assert len(events(results)) == 1


@pytest.mark.slow
def test_a_rank_that_fails_stops_the_job_with_its_reason(results):
    results.set(experiment_values(batch_size=7))
    line = [
        sys.executable,
        "-m",
        "dpar.workflow.launch",
        "--gpus",
        "2",
        "dpar.stages.train_model",
        *results.train_model(),
    ]
    done = subprocess.run(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "batch size 7 cannot be divided by 2 ranks" in done.stderr
