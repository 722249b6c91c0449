"""`dpar table`: what is there, what is missing, and the command for it."""

import shutil

import pytest
import yaml

from dpar import cli, tracking
from dpar.commands import table
from dpar.errors import InputError
from dpar.experiment.cells import sample_cells
from dpar.experiment.loading import parse_experiment
from dpar.files import read_json, write_json
from tests.experiment.test_settings import CONFIG, demo
from tests.report import made_up


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(demo()))
    return path


def show(capsys, config, name, *flags):
    table.main([name, "--config", str(config), "--directory", str(config.parent), *flags])
    return capsys.readouterr().out


def test_without_results_every_cell_is_missing_with_the_command_that_makes_it(config, capsys):
    shown = show(capsys, config, "threshold_by_length")
    assert shown.count("| missing") == 4
    run = f"dpar run --config {config} --directory {config.parent} --"
    seeds = " ".join(f"results/demo/metrics/dpar_pmax2/seed{seed}.json" for seed in range(3))
    likelihood = "results/demo/likelihood/dpar_pmax2/step400.json"
    assert f"- Missing: dpar_pmax2, 0 of 3 seeds, no likelihood; `{run} {seeds} {likelihood}`" in shown
    assert f"- Missing: the noise floor; `{run} results/demo/metrics/noise_floor.json`" in shown
    assert f"- All of it: `{run} threshold_by_length`; what that would run: `{run} threshold_by_length -n`" in shown


def test_what_is_there_is_shown_and_the_rest_is_missing(config, capsys):
    results = config.parent / "results" / "demo"
    made_up.write(results, parse_experiment(demo(), "test"))
    (results / "metrics" / "dpar_pmax2" / "seed1.json").unlink()
    for seed in range(3):
        (results / "metrics" / "dpar_pavg1.4" / f"seed{seed}.json").unlink()
    shown = show(capsys, config, "threshold_by_length")
    assert shown.count("| missing") == 1
    assert "Missing: dpar_pmax2, 2 of 3 seeds" in shown
    assert "Missing: dpar_pavg1.4, 0 of 3 seeds" in shown
    assert "Missing: dpar," not in shown
    assert "Noise floor, 48 real images" in shown
    assert "Missing" not in show(capsys, config, "comparison")


def test_a_likelihood_and_a_linear_probe_can_be_missing_too(config, capsys):
    results = config.parent / "results" / "demo"
    rows = [{"model": "dpar"}, {"model": "dpar", "sampling.cfg_scale": 3.0}, {"model": "llamagen"}]
    values = demo(tables={"t": {"title": "T", "linear_probe": True, "rows": rows}})
    config.write_text(yaml.safe_dump(values))
    made_up.write(results, parse_experiment(values, "test"))
    stated = {"states": "s", "training_images": 9, "training_views": "one", "penalty": 1e-4, "val_images": 3}
    write_json(results / "linear_probe" / "llamagen" / "step400.json", {"top1": 5.0, "conditions": stated})
    (results / "likelihood" / "dpar" / "step400.json").unlink()
    (results / "patch_counts.json").unlink()
    shown = show(capsys, config, "t")
    run = f"dpar run --config {config} --directory {config.parent} -- results/demo"
    lacking = f"{run}/likelihood/dpar/step400.json results/demo/linear_probe/dpar/step400.json"
    assert [line for line in shown.splitlines() if line.startswith("- Missing")] == [
        f"- Missing: dpar, no likelihood, no linear probe; `{lacking}`",
        f"- Missing: the patch counts; `{run}/patch_counts.json`",
    ]


def test_what_makes_the_missing_runs_this_experiment(config, capsys):
    """Without `--set` and `--smoke` it would be another one, which costs more or has no such cells."""
    said = show(capsys, config, "comparison", "--set", "sampling.seeds=[0, 7]", "--smoke", "tiny")
    run = f"dpar run --config {config} --set 'sampling.seeds=[0, 7]' --smoke tiny --directory {config.parent} --"
    assert f"`{run} results/demo.smoke/metrics/llamagen/seed0.json" in said
    assert f"All of it: `{run} comparison`" in said
    assert "--smoke --directory" in show(capsys, config, "comparison", "--smoke")


def test_the_papers_name_of_a_table_is_enough(config, capsys):
    assert "DPAR compared with LlamaGen" in show(capsys, config, "table2")
    assert show(capsys, config, "table2", "--format", "csv").startswith("model,")
    assert r"\toprule" in show(capsys, config, "table2", "--format", "latex")
    with pytest.raises(InputError, match=r"table7 is no part of the experiment demo; no experiment under .* has it"):
        show(capsys, config, "table7")
    with pytest.raises(InputError, match=r"tabel2 is no part .*; targets are table1, .*table2"):
        show(capsys, config, "tabel2")


def test_a_table_of_another_experiment_is_named_with_its_file(config, capsys):
    for command in (["table", "table12"], ["plan", "--target", "table12"]):
        assert cli.main([*command, "--config", str(CONFIG / "imagenet256.yaml")]) == 2
        said = capsys.readouterr().err
        assert "table12 is no part of the experiment imagenet256; it is made with --config " in said
        assert "config/imagenet384.yaml" in said
        assert said.count("\n") == 1
    shutil.copy(CONFIG / "imagenet384.yaml", config.parent / "large.yaml")
    (config.parent / "draft.yaml").write_text("models: [")
    with pytest.raises(InputError, match=r"made with --config .*large\.yaml \("):
        show(capsys, config, "table12")


def test_what_is_no_table_of_measurements_is_printed_from_its_file_or_refused(config, capsys):
    with pytest.raises(InputError, match="-- table1"):
        show(capsys, config, "table1")
    tables = config.parent / "results/demo/tables"
    tables.mkdir(parents=True)
    (tables / "table1.md").write_text("## Models\n")
    assert "## Models" in show(capsys, config, "table1")


def test_numbers_of_other_settings_are_not_shown_under_these(config, capsys):
    results = config.parent / "results" / "demo"
    experiment = parse_experiment(demo(), "test")
    made_up.write(results, experiment)
    for slug, cell in sample_cells(experiment).items():
        for seed in cell.sampling.seeds:
            path = results / "metrics" / slug / f"seed{seed}.json"
            found = read_json(path)
            sampling = cell.sampling.model_dump(mode="json", exclude={"seeds", "compile"})
            found["conditions"]["drawn"] = {"cell": slug, "seed": seed, "sampling": sampling, "step": 400}
            write_json(path, found)
    assert "FD[classifier, 4]" in show(capsys, config, "comparison")
    for change, said in (
        ("sampling.cfg_scale=3", r"sampling\.cfg_scale 2\.0, its row asks for 3\.0: `dpar run` draws and measures"),
        ("training.steps=800", r"after training step 400, its row asks for \w+/step800: `dpar run` trains and"),
    ):
        with pytest.raises(InputError, match=rf"^metrics/\w+/seed0\.json measures .*{said}"):
            show(capsys, config, "comparison", "--set", change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.learning_rate=0.5", r"training\.learning_rate"),
        ("training.steps=800", r"training\.steps step400, this experiment has step800"),
        ("models.dpar.width=48", r"model\.width"),
        ("models.llamagen.width=48", r"metrics/llamagen/seed0\.json was made with model\.width"),
        ("tokenizer.training.steps=7", r"tokenizer\.training\.steps"),
        ("tokenizer.channels=64", r"tokenizer\.channels"),
        ("entropy_model.training.steps=7", r"metrics/dpar/seed0\.json was made with entropy_model\.training\.steps"),
        ("images.generated.train=99999", r"images\.generated"),
        ("evaluation.k=7", r"evaluation\.k"),
        ("evaluation.classifier.steps=7", r"evaluation\.classifier"),
        ("seed=7", "seed 0, this experiment has 7"),
    ],
)
def test_settings_that_no_measurement_states_are_those_of_the_last_run(config, capsys, change, said):
    made_up.write(config.parent / "results" / "demo", parse_experiment(demo(), "test"))
    with pytest.raises(InputError, match=said):
        show(capsys, config, "comparison", "--set", change)


@pytest.mark.parametrize(
    "change", ["training.validate_every=7", "images.credits=me", "codes.train_shards=7", "training.compile=true"]
)
def test_settings_that_decide_no_number_may_change(config, capsys, change):
    made_up.write(config.parent / "results" / "demo", parse_experiment(demo(), "test"))
    assert "FD[classifier, 4]" in show(capsys, config, "comparison", "--set", change)


def test_the_record_of_a_job_says_what_its_settings_were(config, capsys):
    """A run with other settings was begun and stopped: `experiment.json` is new, the numbers are old."""
    results = config.parent / "results" / "demo"
    old = parse_experiment(demo(), "test")
    made_up.write(results, old)
    for path in results.glob("metrics/*/seed*.json"):
        name, found = f"compute_metrics[{path.parent.name},{path.stem}]", read_json(path)
        with tracking.job(rule="compute_metrics", name=name, experiment=results / "experiment.json", outputs=[path]):
            write_json(path, found)
    for path in results.glob("likelihood/*/*.json"):
        name, found = f"evaluate_likelihood[{path.parent.name}/{path.stem}]", read_json(path)
        with tracking.job(
            rule="evaluate_likelihood", name=name, experiment=results / "experiment.json", outputs=[path]
        ):
            write_json(path, found)
    for path in (results / "patch_counts.json", results / "metrics/noise_floor.json"):
        rule, found = ("count_patches" if "counts" in path.name else "measure_noise_floor"), read_json(path)
        with tracking.job(rule=rule, experiment=results / "experiment.json", outputs=[path]):
            write_json(path, found)
    assert "FD[classifier, 4]" in show(capsys, config, "comparison")
    config.write_text(yaml.safe_dump(demo(training__learning_rate=0.5)))
    new = parse_experiment(yaml.safe_load(config.read_text()), "test")
    write_json(results / "experiment.json", new.model_dump(mode="json"))
    with pytest.raises(
        InputError, match=r"seed0\.json was made with training\.learning_rate .* this experiment has 0\.5"
    ):
        show(capsys, config, "comparison")
