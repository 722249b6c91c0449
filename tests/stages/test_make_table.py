"""The stage that prints one table."""

import json

import pandas as pd
import pytest

from dpar.config import parse_experiment
from dpar.files import read_json, write_json
from dpar.stages import make_table
from tests.report import made_up
from tests.test_config import demo


@pytest.fixture
def experiment():
    return parse_experiment(demo(), "test")


def arguments(folder, files, table):
    pictures = sorted(folder.glob("samples/*/*/*.png"))
    return [
        *("--experiment", folder / "experiment.json", "--table", table),
        *("--metrics", *sorted(folder.glob("metrics/*/*.json"))),
        *("--likelihoods", *sorted(folder.glob("likelihood/*/*.json"))),
        *(part for name, path in files.items() for part in (f"--{name}", path)),
        *("--pictures", *pictures),
        *(part for kind, end in (("csv", "csv"), ("markdown", "md"), ("latex", "tex"))
          for part in (f"--{kind}", folder / "tables" / f"{table}.{end}")),
    ]  # fmt: skip


def test_the_table_comes_out_in_three_forms_with_its_conditions(tmp_path, experiment):
    files = made_up.write(tmp_path, experiment)
    make_table.main(list(map(str, arguments(tmp_path, files, "threshold_by_length"))))
    frame = pd.read_csv(tmp_path / "tables" / "threshold_by_length.csv")
    assert frame[["patchify.p_avg", "patchify.max_length"]].values.tolist() == [[1.4, 2], [1.4, 4], [1.8, 2], [1.8, 4]]
    assert frame["threshold"].tolist() == pytest.approx([2.8, 2.8, 3.6, 3.6])
    markdown = (tmp_path / "tables" / "threshold_by_length.md").read_text()
    assert "Noise floor, 48 real images against as many others: 0.5 ± 0.1." in markdown
    assert "Warning: few images" in markdown
    assert "Not comparable to published numbers: the feature network is not Inception" in markdown
    assert r"\toprule" in (tmp_path / "tables" / "threshold_by_length.tex").read_text()


def test_linear_probes_come_with_their_protocol(tmp_path, experiment):
    files = made_up.write(tmp_path, experiment)
    stated = {"states": "after the last block", "training_images": 90, "training_views": "one an image"}
    stated |= {"val_images": 30, "penalty": 1e-4}
    probes = {}
    for number, model in enumerate(("llamagen", "dpar")):
        probes[model] = tmp_path / "linear_probe" / model / "step400.json"
        write_json(probes[model], {"top1": 30.5 + number, "top5": 60.5, "conditions": stated})
    flags = [*arguments(tmp_path, files, "comparison"), "--linear-probes", *probes.values()]
    make_table.main(list(map(str, flags)))
    markdown = (tmp_path / "tables" / "comparison.md").read_text()
    assert "states after the last block; fitted on 90 training images (one an image; penalty 0.0001)" in markdown
    assert pd.read_csv(tmp_path / "tables" / "comparison.csv")["top1"].tolist() == [30.5, 31.5]
    (events,) = (tmp_path / "tracking" / "spool" / "make_table").glob("*/events.jsonl")
    results = [json.loads(line) for line in events.read_text().splitlines() if '"event": "result"' in line]
    assert [result["metrics"]["probe/top1"] for result in results] == [30.5, 31.5]
    assert "linear_probe/dpar/step400.json" in events.read_text()


def test_every_row_becomes_a_result_of_the_job_with_its_sources(tmp_path, experiment):
    files = made_up.write(tmp_path, experiment)
    make_table.main(list(map(str, arguments(tmp_path, files, "comparison"))))
    (manifest,) = (tmp_path / "tracking" / "spool" / "make_table").glob("*/manifest.json")
    assert {entry["path"] for entry in read_json(manifest)["outputs"]} == {
        "tables/comparison.csv",
        "tables/comparison.md",
        "tables/comparison.tex",
    }
    events = (manifest.parent / "events.jsonl").read_text()
    results = [json.loads(line) for line in events.splitlines() if '"event": "result"' in line]
    baseline, ours = (result["params"] for result in results)
    assert {"threshold", "max_length", "patch_length"}.isdisjoint(baseline), "what a model has not is not recorded"
    assert (ours["max_length"], ours["threshold"]) == ("4", "3.6")
    assert "metrics/llamagen/seed0.json" in events
