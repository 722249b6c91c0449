"""The stage that prints one table."""

import json

import pandas as pd
import pytest

from dpar.errors import InputError
from dpar.experiment.loading import parse_experiment
from dpar.files import read_json, write_json
from dpar.stages import make_table, plot_ablation, plot_pareto
from tests.experiment.test_settings import demo
from tests.report import made_up


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


def recorded(folder, part):
    """The settings (`params`) or the numbers (`metrics`) of each row, as the job recorded them."""
    (events,) = (folder / "tracking" / "spool" / "make_table").glob("*/events.jsonl")
    return [json.loads(line)[part] for line in events.read_text().splitlines() if '"event": "result"' in line]


def test_the_table_comes_out_in_three_forms_with_its_conditions(tmp_path, experiment):
    files = made_up.write(tmp_path, experiment)
    make_table.main(list(map(str, arguments(tmp_path, files, "threshold_by_length"))))
    frame = pd.read_csv(tmp_path / "tables" / "threshold_by_length.csv")
    assert frame[["patchify.p_avg", "patchify.max_length"]].values.tolist() == [[1.4, 2], [1.4, 4], [1.8, 2], [1.8, 4]]
    assert frame["threshold"].tolist() == pytest.approx([2.8, 2.8, 3.6, 3.6])
    markdown = (tmp_path / "tables" / "threshold_by_length.md").read_text()
    assert "Noise floor, 48 real images against as many others: 0.50 ± 0.10." in markdown
    assert "Warning: few images" in markdown
    assert "Not comparable to published numbers: the feature network is not Inception" in markdown
    assert r"\toprule" in (tmp_path / "tables" / "threshold_by_length.tex").read_text()


def test_linear_probes_come_with_their_protocol(tmp_path, experiment):
    files = made_up.write(tmp_path, experiment)
    stated = {"states": "after the last block", "training_images": 90, "training_views": "one per image"}
    stated |= {"val_images": 30, "penalty": 1e-4}
    probes = {}
    for number, model in enumerate(("llamagen", "dpar")):
        probes[model] = tmp_path / "linear_probe" / model / "step400.json"
        write_json(probes[model], {"top1": 30.5 + number, "top5": 60.5, "conditions": stated})
    flags = [*arguments(tmp_path, files, "comparison"), "--linear-probes", *probes.values()]
    make_table.main(list(map(str, flags)))
    markdown = (tmp_path / "tables" / "comparison.md").read_text()
    assert "states after the last block; fitted on 90 training images (one per image; penalty 0.0001)" in markdown
    assert pd.read_csv(tmp_path / "tables" / "comparison.csv")["top1"].tolist() == [30.5, 31.5]
    assert [metrics["probe/top1"] for metrics in recorded(tmp_path, "metrics")] == [30.5, 31.5]
    assert any("linear_probe/dpar/step400.json" in sources for sources in recorded(tmp_path, "sources"))


def test_guidance_of_a_part_of_the_sequence_goes_through_table_record_and_figures(tmp_path):
    """`sampling.cfg_interval` has two values, which one cell of a table holds as a text."""
    vary = {"sampling.cfg_scale": [1.5, 2.0], "sampling.cfg_interval": [[0.0, 0.5], [0.5, 1.0]]}
    experiment = parse_experiment(demo(tables={"t": {"title": "T", "rows": [{"model": "dpar"}], "vary": vary}}), "test")
    files = made_up.write(tmp_path, experiment)
    make_table.main(list(map(str, arguments(tmp_path, files, "t"))))
    assert "[0.5, 1.0]" in (tmp_path / "tables" / "t.md").read_text()
    assert {params["sampling.cfg_interval"] for params in recorded(tmp_path, "params")} == {"[0.0, 0.5]", "[0.5, 1.0]"}
    frame = pd.read_csv(tmp_path / "tables" / "t.csv")
    axes = plot_ablation.draw(experiment, "t", frame, read_json(files["noise-floor"])).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["[0.0, 0.5]", "[0.5, 1.0]"]
    named = plot_pareto.points(experiment, "t", frame)["training GMACs/image"]
    assert named[1][0] == "cfg_scale 1.5, cfg_interval [0.5, 1.0]"


def test_every_row_becomes_a_result_of_the_job_with_its_sources(tmp_path, experiment):
    files = made_up.write(tmp_path, experiment)
    make_table.main(list(map(str, arguments(tmp_path, files, "comparison"))))
    (manifest,) = (tmp_path / "tracking" / "spool" / "make_table").glob("*/manifest.json")
    assert {entry["path"] for entry in read_json(manifest)["outputs"]} == {
        "tables/comparison.csv",
        "tables/comparison.md",
        "tables/comparison.tex",
    }
    baseline, ours = recorded(tmp_path, "params")
    assert {"threshold", "max_length", "patch_length"}.isdisjoint(baseline), "what a model has not is not recorded"
    assert (ours["max_length"], ours["threshold"]) == ("4", "3.6")
    assert "metrics/llamagen/seed0.json" in recorded(tmp_path, "sources")[0]


def test_what_training_and_sampling_cost_are_numbers_of_a_row_and_not_settings(tmp_path, experiment):
    files = made_up.write(tmp_path, experiment)
    make_table.main(list(map(str, arguments(tmp_path, files, "comparison"))))
    written = pd.read_csv(tmp_path / "tables" / "comparison.csv")
    for params, metrics, row in zip(
        recorded(tmp_path, "params"), recorded(tmp_path, "metrics"), written.to_dict("records"), strict=True
    ):
        assert {"training_gmacs", "sampling_gmacs", "parameters"}.isdisjoint(params)
        costs = {key: value for key, value in metrics.items() if key.startswith("cost/")}
        names = ("training_gmacs", "sampling_gmacs", "parameters")
        assert costs == {f"cost/{name}": row[name] for name in names if row[name] == row[name]}
    assert written["sampling_gmacs"].notna().tolist() == [True, False], "no steps of the DPAR are made up"


def test_measurements_of_another_shape_make_no_table(tmp_path, experiment):
    files = made_up.write(tmp_path, experiment)
    flags = list(map(str, arguments(tmp_path, files, "comparison")))
    likelihoods = [tmp_path / "likelihood" / model / "step400.json" for model in ("dpar", "llamagen")]
    found = [read_json(path) for path in likelihoods]
    for path, other in zip(likelihoods, reversed(found), strict=True):
        write_json(path, other)
    with pytest.raises(InputError, match="two files were exchanged"):
        make_table.main(flags)
    for path, own in zip(likelihoods, found, strict=True):
        write_json(path, own)
    for path in (files["patch-counts"], files["noise-floor"], *likelihoods, *tmp_path.glob("metrics/dpar/seed*.json")):
        whole = read_json(path)
        write_json(path, {"a": 1})
        with pytest.raises(InputError, match=f"{path.name} lacks a field"):
            make_table.main(flags)
        write_json(path, whole)
    assert not (tmp_path / "tables").exists()
