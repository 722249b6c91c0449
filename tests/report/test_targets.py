"""Targets: every table and figure of the paper belongs to an experiment, or is refused with the one that has it."""

import pytest

from dpar.errors import InputError
from dpar.experiment.cells import figure_rows, table_rows
from dpar.report import targets
from tests.experiment.test_settings import CONFIG, SHIPPED, demo, load_experiment, parse_experiment


@pytest.mark.parametrize("name", targets.PAPER_TARGETS)
def test_every_table_and_figure_of_the_paper_is_made_at_its_scale(name):
    having = [
        n for n in ("imagenet256", "imagenet384") if name in targets.targets(load_experiment(CONFIG / f"{n}.yaml"))
    ]
    assert having


def test_a_target_of_another_experiment_is_refused_with_the_file_that_has_it():
    told = targets.refusal("table12", load_experiment(CONFIG / "imagenet256.yaml"), CONFIG)
    assert "table12 is no part of the experiment imagenet256" in told
    assert "--configfile config/imagenet384.yaml" in told
    assert "imagenet256.yaml" not in told


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("results/demo/tokenizer/report.json", None),
        ("results/demo/models/llamagen/step400/config.json", None),
        ("results/demo/tables/table8.md", None),
        ("results/demo/features/dpar/seed0.npz", None),
        ("tokenizer/report.json", "say --target results/demo/tokenizer/report.json"),
        ("/home/me/results/demo/report.html", "say --target results/demo/report.html"),
        ("results/demo.smoke/codes/val/00000.parquet", "say --target results/demo/codes/val/00000.parquet"),
        (
            "tokenizer/raport.json",
            "no rule makes tokenizer/raport.json; did you mean results/demo/tokenizer/report.json",
        ),
        ("results/demo/metrics/dparr/seed1.json", "did you mean results/demo/metrics/dpar/seed1.json?"),
        ("some/thing.else", "no rule makes some/thing.else; files that rules make begin with results/demo/"),
    ],
)
def test_a_file_that_no_rule_makes_is_refused_with_the_one_that_was_meant(name, said):
    experiment = load_experiment(CONFIG / "demo.yaml")
    patterns = targets.output_patterns(
        experiment, [path.read_text() for path in CONFIG.parent.glob("workflow/rules/*")]
    )
    found = targets.file_refusal(name, experiment, patterns)
    assert found is None if said is None else found and said in found


@pytest.mark.parametrize("name", SHIPPED)
def test_all_tables_are_all_of_them_in_three_forms(name):
    experiment = load_experiment(CONFIG / f"{name}.yaml")
    found = targets.targets(experiment)["all_tables"]
    assert len(found) == len(set(found))
    tables = [file for file in found if file.startswith("tables/")]
    assert len(tables) == 3 * (len(experiment.shown_tables) + 2)
    cells = [row.sample for name in experiment.shown_tables for row in table_rows(experiment, name)]
    assert set(found) >= {*tables, *targets.metric_files(cells)}


@pytest.mark.parametrize("name", SHIPPED)
def test_patches_are_analysed_where_a_dpar_asks_entropies(name):
    assert targets.targets(load_experiment(CONFIG / f"{name}.yaml"))["figure_patches"] == targets.ANALYSIS
    baseline = parse_experiment(demo(tables={"t": {"title": "T", "rows": [{"model": "llamagen"}]}}), "test")
    assert "figure_patches" not in targets.targets(baseline)


def test_a_table_is_made_with_all_its_measurements():
    probed = {"title": "T", "linear_probe": True, "rows": [{"model": "dpar"}, {"model": "llamagen"}]}
    plain = {"title": "P", "rows": [{"model": "dpar"}]}
    found = targets.targets(parse_experiment(demo(tables={"t": probed, "p": plain}), "test"))
    state = "dpar/step400.json"
    measured = {f"likelihood/{state}", "metrics/dpar/seed2.json", "metrics/noise_floor.json", "patch_counts.json"}
    assert measured <= set(found["p"])
    assert not any(file.startswith("linear_probe/") for file in found["p"])
    assert {*measured, f"linear_probe/{state}", "linear_probe/llamagen/step400.json"} <= set(found["t"])
    assert {*found["t"], *found["p"]} - {"figures/t.png", "figures/p.png"} <= set(found["all_tables"])


def test_the_tables_of_a_target_are_those_that_stand_for_it():
    experiment = load_experiment(CONFIG / "demo.yaml")
    assert targets.tables_of(experiment, ["table2"]) == ["comparison"]
    assert targets.tables_of(experiment, ["threshold_by_length"]) == ["threshold_by_length"]
    with pytest.raises(InputError, match="table7 is no target of demo; targets are table1, "):
        targets.tables_of(experiment, ["table7"])


def test_figure_1b_needs_the_papers_fully_trained_models_alone():
    own = parse_experiment(demo(tables={"t": {"title": "T", "rows": [{"model": "dpar"}]}}), "test")
    assert targets.sized_tables(own) == ["t"]
    seeded = demo(training_seeds=[1, 0], tables={"t": {"title": "T", "rows": [{"model": "dpar"}]}})
    assert targets.sized_tables(parse_experiment(seeded, "test")) == ["t"], "whatever the seed of its first training"
    departing = demo(tables={"t": {"title": "T", "rows": [{"model": "dpar", "patchify.max_length": 2}]}})
    assert targets.sized_tables(parse_experiment(departing, "test")) == []
    assert targets.sized_tables(load_experiment(CONFIG / "imagenet256.yaml")) == ["table2", "table11"]


def test_figures_5_to_12_show_dpar_xl_with_the_papers_guidance():
    shown = {}
    for name in ("imagenet256", "imagenet384"):
        experiment = load_experiment(CONFIG / f"{name}.yaml")
        for figure in experiment.figures:
            (row,) = figure_rows(experiment, figure)
            shown[figure] = experiment.images.resolution, row.model.slug, row.sample.sampling.cfg_scale
    scales = (1.75, 1.9, 2.0, 2.1)
    assert shown == {
        f"figure{5 + 4 * block + i}": (side, "DPAR-XL", scale)
        for block, side in enumerate((256, 384))
        for i, scale in enumerate(scales)
    }


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        ({"comparison": [0]}, "comparison: a table or figure of this name exists"),
        ({"samples": [0]}, "samples"),
        ({"figure5": [8]}, "class 8 is not among the 8 classes"),
    ],
)
def test_a_figure_that_cannot_be_is_named(figures, named):
    values = {name: {"title": "F", "rows": [{"model": "dpar"}], "classes": c} for name, c in figures.items()}
    with pytest.raises(InputError, match=named):
        parse_experiment(demo(figures=values), "test")


def test_a_table_on_request_is_made_by_its_name_alone_and_not_every_table_may_be_one():
    tables = demo()["tables"]
    asked = next(iter(tables))
    experiment = parse_experiment(demo(tables={**tables, asked: tables[asked] | {"on_request": True}}), "the test")
    found = targets.targets(experiment)
    assert set(targets.table_files(asked)) <= set(found[asked])
    assert not any(asked in file.split("/")[-1] for file in found["all_tables"] if file.startswith("tables/"))
    assert asked not in targets.sized_tables(experiment)
    with pytest.raises(InputError, match="every table is `on_request`"):
        parse_experiment(demo(tables={asked: tables[asked] | {"on_request": True}}), "the test")
