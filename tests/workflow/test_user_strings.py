"""What users write into an experiment reaches commands and pages as it is: nothing of it is run, split or expanded."""

import re
import shlex
import shutil
from html import unescape
from pathlib import Path

import pytest
import yaml

from dpar.files import read_json
from dpar.report.page import Section, page
from tests.data.samples import image_bytes, sample_image
from tests.experiment.test_settings import demo
from tests.workflow.conftest import ROOT

HOSTILE = "im ages;touch was_run;$(touch was_run) `touch was_run` 'x\" {model} & <b> ü*[1]"


def commands(output: str, stage: str) -> list[list[str]]:
    """The words of each printed command that starts `stage`, up to its log."""
    lines = [line for line in output.splitlines() if f"dpar.stages.{stage} " in line]
    return [shlex.split(line.partition(" 2>&1 |")[0].rpartition("; python")[2] or line) for line in lines]


def flag(words: list[str], name: str) -> str:
    """What follows `--name`."""
    return words[words.index(f"--{name}") + 1]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (f"/data/{HOSTILE}/net.pt", f"/data/{HOSTILE}/net.pt"),
        ("~/nets/net.pt", f"{Path.home()}/nets/net.pt"),
        ("-net.pt", "./-net.pt"),
    ],
)
def test_paths_of_the_users_reach_the_stages_unharmed(snakemake, tmp_path, written, expected):
    reference = f"{written.removesuffix('.pt')}.npz"
    values = demo(evaluation={"extractor": written, "reference": reference})
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    run = snakemake("--dry-run", "--printshellcmds", "--configfile", tmp_path / "odd.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    told = commands(run.stdout + run.stderr, "extract_features")
    assert len(told) > 1
    assert {flag(words, "extractor") for words in told} == {expected}
    assert f"{expected.removesuffix('.pt')}.npz" in {flag(words, "images") for words in told}
    assert {flag(words, "extractor") for words in commands(run.stdout + run.stderr, "evaluate_tokenizer")} == {expected}
    assert not (tmp_path / "was_run").exists()


def test_a_folder_of_images_may_have_any_name(snakemake, tmp_path):
    for split, first, each in (("train", 0, 70), ("val", 1000, 2)):  # as many as the checks at the start ask for
        for label in range(2):
            folder = tmp_path / HOSTILE / split / str(label)
            folder.mkdir(parents=True)
            for i in range(each):
                (folder / f"{i}.png").write_bytes(image_bytes(sample_image(first + 100 * label + i)))
    images = {"source": "folder", "resolution": 64, "num_classes": 2}
    images |= {split: str(tmp_path / HOSTILE / split) for split in ("train", "val")}
    values = demo(images=images, name="odd")
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    run = snakemake("--cores", "2", "--configfile", tmp_path / "odd.yaml", "--", "results/odd/index/train.json")
    assert run.returncode == 0, run.stdout + run.stderr
    index = read_json(tmp_path / "results" / "odd" / "index" / "train.json")
    assert index["path"] == images["train"]
    assert index["count"] == 140
    assert not (tmp_path / "was_run").exists()


def test_a_checkout_may_lie_in_a_folder_of_any_name(tmp_path, snakemake):
    checkout = tmp_path / "check out;$(touch was_run) 'x\" & ü?"
    checkout.mkdir()
    for part in ("Snakefile", "workflow", "config", "envs"):
        whole = ROOT / part
        (shutil.copytree if whole.is_dir() else shutil.copy)(whole, checkout / part)
    run = snakemake("--dry-run", "--printshellcmds", "--snakefile", checkout / "Snakefile", cwd=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    (words,) = commands(run.stdout + run.stderr, "write_report")
    assert flag(words, "captions") == str(checkout / "workflow" / "report")
    braced = checkout.rename(tmp_path / "{model}")
    run = snakemake("--dry-run", "--snakefile", braced / "Snakefile", cwd=braced)
    assert "has braces in its path" in run.stdout + run.stderr


def test_tags_of_an_experiment_file_run_nothing(snakemake, tmp_path):
    text = (ROOT / "config" / "demo.yaml").read_text("utf-8")
    for tag in ("!!python/object/apply:os.system ['touch was_run']", "!!python/name:os.system"):
        (tmp_path / "tagged.yaml").write_text(re.sub("name: demo", f"name: {tag}", text), "utf-8")
        run = snakemake("--dry-run", "--configfile", tmp_path / "tagged.yaml")
        assert run.returncode != 0
        assert not (tmp_path / "was_run").exists()


def test_html_of_the_users_is_text_on_the_page():
    script = "<script>alert('x')</script>\"&amp;"
    section = Section(script, "anchor").text(script).points([script]).facts({script: script}).code(script, script)
    shown = page(script, script, [section])
    assert "<script>" not in shown
    assert unescape(shown).count(script) == 11
