"""The paper's numbers: found by settings, and only there."""

import pytest

from dpar.experiment.cells import table_rows
from dpar.report import paper
from tests.experiment.test_settings import CONFIG, demo, load_experiment, parse_experiment


def printed(name, table):
    experiment = load_experiment(CONFIG / f"{name}.yaml")
    return {row.sample.slug: paper.numbers(experiment, table, row) for row in table_rows(experiment, table)}


@pytest.mark.parametrize("name", ["imagenet256", "imagenet384"])
def test_every_number_of_the_paper_finds_its_row(name):
    experiment = load_experiment(CONFIG / f"{name}.yaml")
    tables = [t for t, table in experiment.tables.items() if table.paper and table.paper.startswith("table")]
    assert tables
    for table in tables:
        rows = printed(name, table).values()
        side = experiment.images.resolution
        found = paper.of_table(experiment.tables[table].paper)
        here = [e for e in found["rows"] if {**found.get("base", {}), **e}["resolution"] == side]
        numbers = [{k: v for k, v in entry.items() if k in paper.PAPER_METRICS} for entry in here]
        assert sorted(map(str, rows)) == sorted(map(str, numbers)), table


def test_some_numbers_by_hand():
    assert printed("imagenet256", "table2")["DPAR-XL"] == {
        "fid": 2.67, "inception_score": 281.65, "precision": 0.82, "recall": 0.56, "steps": 142
    }  # fmt: skip
    assert printed("imagenet256", "table4")["DPAR-L_eth7.9-epoch50"] == {"fid": 3.46}
    assert printed("imagenet256", "table5")["DPAR-L_pmax16-epoch50"] == {"fid": 3.61}
    assert printed("imagenet256", "table6")["DPAR-L_strategystatic_pavg1.81-epoch50-pavg2.16"] == {"fid": 25.59}
    assert printed("imagenet256", "table10")["DPAR-L_encoderlayers4_decoderlayers1-epoch50"] == {"fid": 3.85}
    assert printed("imagenet384", "table12")["DPAR-B-epoch50"]["fid"] == 5.96
    assert printed("imagenet384", "convergence")["DPAR-B-epoch50"]["fid"] == 5.96
    assert printed("imagenet384", "convergence")["LlamaGen-B-epoch50"] == {}


def test_the_papers_numbers_stand_beside_no_other_images_or_settings():
    row = {"model": "DPAR-L", "milestone": 50, "sampling.cfg_scale": 1.5}
    values = demo(models={"DPAR-L": {"variant": "DPAR-L"}}, training={"epochs": 300, "milestones": [50]})
    values |= {"tables": {"t": {"title": "T", "paper": "table4", "rows": [row, {**row, "paper.fid": 3.0}]}}}
    small = parse_experiment(values, "test")
    plain, stated = table_rows(small, "t")
    assert paper.numbers(small, "t", plain) == {}
    assert paper.numbers(small, "t", stated) == {"fid": 3.0}
    assert paper.quoted(small, "t") == []


def test_the_papers_numbers_stand_beside_no_model_of_other_sizes():
    values = load_experiment(CONFIG / "imagenet256.yaml").model_dump(mode="json", exclude_unset=True)
    base = {"model": "DPAR-L", "milestone": 50}
    other = {**base, "transformer.layers": 12}
    values["tables"] = {"t": {"title": "T", "paper": "table4", "rows": [base, other]}}
    experiment = parse_experiment(values, "test")
    published, shallow = table_rows(experiment, "t")
    assert paper.numbers(experiment, "t", published) == {"fid": 3.32}
    assert paper.numbers(experiment, "t", shallow) == {}


def test_others_are_quoted_in_table_2_at_both_resolutions_and_nowhere_else():
    for name in ("imagenet256", "imagenet384", "demo"):
        experiment = load_experiment(CONFIG / f"{name}.yaml")
        for table in experiment.tables:
            wanted = 22 if table == "table2" else 0
            assert len(paper.quoted(experiment, table)) == wanted
