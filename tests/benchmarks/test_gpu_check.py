"""The check of a GPU, at sizes that a CPU has time for: every part, what a cut one leaves, packages from wheels."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch

from dpar.benchmarks import gpu_check, gpu_parts
from dpar.files import write_json
from dpar.model.variants import build_entropy_model, entropy_model_config
from dpar.sampling import steps
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.weights import save_model
from tests.train.tiny import CLASSES, GRID, VOCAB, Results


@pytest.fixture
def results(tmp_path):
    """What `real-tokens` reads: an experiment, scored codes, a threshold, and the networks for a picture."""
    made = Results.make(tmp_path / "results")
    write_json(made.folder / "thresholds/pavg1.6.json", {"p_avg": {"1.6": {"threshold": 2.0, "achieved": 1.61}}})
    experiment = made.experiment
    torch.manual_seed(0)
    save_model(made.folder / "tokenizer", VQAutoencoder(experiment.tokenizer.autoencoder), {})
    sizes = {"vocab_size": VOCAB, "grid": GRID, "num_classes": CLASSES}
    gate = build_entropy_model(entropy_model_config(experiment.entropy_model, **sizes))
    save_model(made.folder / "entropy_model", gate, {})
    return made.folder


def rows(path):
    """The numbers of a part's file, by what they are of."""
    return {row["what"]: row for row in json.loads(path.read_text())["rows"]}


def uncompiled(step):
    """The step itself: compiling takes its time, and what is compiled is tested elsewhere."""
    return step


@pytest.mark.parametrize("part", sorted(gpu_check.LIMITS))
def test_every_part_runs_where_there_is_no_gpu(tmp_path, monkeypatch, results, part):
    assert gpu_check.LIMITS.keys() == gpu_parts.PARTS.keys()
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_parts, "TURNS", 1)
    monkeypatch.setattr(gpu_parts, "TESTS", ("tests/patches/test_rule.py",))
    monkeypatch.setattr(gpu_parts, "EVERY", 2)
    monkeypatch.setattr(steps, "compiled", uncompiled)
    monkeypatch.setattr(steps, "try_compiler", lambda device: None)
    monkeypatch.setattr(gpu_parts, "own_sampler", lambda folder, model, scale: lambda batch: model.output.weight.sum())
    flags = ["--tiny", "--results", str(results), "--llamagen", str(tmp_path)]
    gpu_parts.main([part, str(tmp_path / "part.json"), *flags])
    found = rows(tmp_path / "part.json")
    if part == "sampling":
        ratio = found["4 images: DPAR over LlamaGen, images per second"]["value"]
        ours, theirs = (
            found[f"4 images: {name}, ms per token"]["images_per_s"]
            for name in ("DPAR, launched, entropies in tf32", "LlamaGen, launched")
        )
        assert float(ratio) == pytest.approx(ours / theirs, abs=0.01)
        for precision in ("float32", "tf32", "bfloat16"):
            assert f"2 images: DPAR, launched, entropies in {precision}, ms per token" in found
    elif part == "compiled":
        assert "4 images: DPAR, compiled, launched, entropies in tf32, ms per token" in found
        assert float(found["4 images: DPAR, compiled over LlamaGen, compiled, images per second"]["value"]) > 0
    elif part == "llamagen":
        assert float(found["4 images: LlamaGen here over its own script, images per second"]["value"]) < 1
    elif part.startswith("training"):
        assert float(found["called: time ratio"]["value"]) > 0
        assert found["called: DPAR"]["value"].split()[1] == "ms,"
        assert found["called: time ratio"]["predicted"].endswith("by FLOPs")
    elif part == "real-tokens":
        before, after = (float(found[f"NLL {when}, nats per token"]["value"]) for when in ("before", "after"))
        assert after != before  # lower on real tokens; these are random, which a fast machine learns by heart in 5 s
        assert (tmp_path / "samples-before.png").read_bytes() != (tmp_path / "samples-after.png").read_bytes()
    elif part == "tests":
        assert "skipped" in found["tests marked gpu"]["value"] or torch.cuda.is_available()
    else:
        assert found["packed attention sdpa, float32"]["value"] == "works"


def check(folder, *flags):
    """The table that the command prints, and its files."""
    gpu_check.main(["--out", str(folder), *flags])
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def part_of(text, monkeypatch, tmp_path):
    """Has the children run this program instead of the parts."""
    (tmp_path / "dpar/benchmarks").mkdir(parents=True)
    for folder in ("dpar", "dpar/benchmarks"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "dpar/benchmarks/gpu_parts.py").write_text("import json, sys, time, pathlib\n" + text)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)


def test_a_part_that_is_cut_keeps_what_it_had_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    part_of(
        "pathlib.Path(sys.argv[2]).write_text(json.dumps({'rows': [{'what': 'a', 'value': sys.argv[1]}]}))\n"
        "time.sleep(60 if sys.argv[1] == 'tests' else 0)\n"
        "sys.exit('it broke' if sys.argv[1] == 'sampling' else 0)\n",
        monkeypatch,
        tmp_path,
    )
    monkeypatch.setattr(gpu_check, "LIMITS", {"tests": 10, "environment": 20, "sampling": 20})
    with pytest.raises(SystemExit):
        check(tmp_path / "out", "--seconds", "50")
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert {name: part["state"] for name, part in found.items()} == {
        "environment": "done", "tests": "cut", "sampling": "failed"
    }  # fmt: skip
    assert found["tests"]["measured"]["rows"] == [{"what": "a", "value": "tests"}]
    assert found["sampling"]["error"] == "it broke"
    printed = capsys.readouterr().out
    assert "| environment | a | environment |  |" in printed
    assert "| tests | cut after 10 s |" in printed
    assert (tmp_path / "out/table.md").read_text() == printed


def test_a_part_has_what_the_later_ones_do_not_need(tmp_path, monkeypatch):
    part_of("time.sleep(60 if sys.argv[1] == 'tests' else 0)\n", monkeypatch, tmp_path)
    monkeypatch.setattr(gpu_check, "LIMITS", {"environment": 5, "tests": 1, "sampling": 0, "real-tokens": 100})
    found = check(tmp_path / "out", "--seconds", "12")
    assert {name: part["state"] for name, part in found.items()} == {
        "environment": "done", "tests": "cut", "sampling": "no time left"
    }  # fmt: skip
    assert found["environment"]["limit"] == pytest.approx(11, abs=0.5), "no --results: nothing is kept for real tokens"
    assert found["tests"]["limit"] > 1, "what was left by the first"


def test_a_measurement_that_fails_does_not_end_its_part(tmp_path, monkeypatch, capsys):
    """As a back end that this PyTorch has not: the other rows are there, the part says what failed, its status is 1."""
    monkeypatch.setattr(gpu_parts, "TURNS", 1)
    sampled = gpu_parts.Pair.sampled

    def fail(pair, name, request, *how, **given):
        if len(request["labels"]) == 4:
            raise NotImplementedError("no such kernel\nand more")
        return sampled(pair, name, request, *how, **given)

    monkeypatch.setattr(gpu_parts.Pair, "sampled", fail)
    with pytest.raises(SystemExit, match=r"^4 images: NotImplementedError: no such kernel$"):
        gpu_parts.main(["sampling", str(tmp_path / "part.json"), "--tiny"])
    found = rows(tmp_path / "part.json")
    assert found["4 images"]["value"] == "failed: NotImplementedError: no such kernel"
    assert "2 images: DPAR, launched, entropies in bfloat16, ms per token" in found
    assert "in fail" in capsys.readouterr().err, "the log has the traceback"


def test_packages_that_the_machine_lacks_come_from_wheels(tmp_path, monkeypatch):
    part_of("import lacking\npathlib.Path(sys.argv[2]).write_text('{}')\n", monkeypatch, tmp_path)
    with pytest.raises(SystemExit):
        check(tmp_path / "without", "--parts", "environment")
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/lacking-1-py3-none-any.whl", "w") as archive:
        archive.writestr("lacking.py", "")
    found = check(tmp_path / "with", "--parts", "environment", "--wheels", str(tmp_path / "wheels"))
    assert found["environment"]["state"] == "done"


def test_the_command_itself_needs_python_alone():
    code = "import sys, dpar.benchmarks.gpu_check; sys.exit(bool({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_parts_fit_eight_minutes():
    assert sum(gpu_check.LIMITS.values()) == gpu_check.TOTAL <= 8 * 60
