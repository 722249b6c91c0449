"""Cells of tables: shared cells are one, names are stable, mistakes are named."""

from itertools import pairwise

import pytest

from dpar.errors import InputError
from dpar.experiment.cells import (
    analysed_cells,
    gated_cells,
    model_cells,
    p_avg_targets,
    sample_cells,
    table_rows,
    threshold_of,
)
from dpar.experiment.loading import parse_experiment
from dpar.experiment.settings import VARIANTS
from tests.experiment.test_settings import CONFIG, demo, load_experiment


def with_rows(*rows, **vary):
    return parse_experiment(demo(tables={"t": {"title": "t", "rows": list(rows), "vary": vary}}), "test")


def test_the_papers_ablations_at_256_need_eighteen_trainings_of_fifty_epochs():
    experiment = load_experiment(CONFIG / "imagenet256.yaml")
    tables = ("table3", "table4", "table5", "table6", "table9", "table10")
    rows = [row for name in tables for row in table_rows(experiment, name)]
    assert len(rows) == 4 + 5 + 6 + 8 + 3 + 4
    assert len({row.model.slug for row in rows}) == 18
    assert {row.sample.milestone for row in rows} == {"epoch50"}


def test_the_default_cell_of_every_ablation_is_a_milestone_of_the_main_run():
    experiment = load_experiment(CONFIG / "imagenet256.yaml")
    shared = [
        row.model.slug
        for name in ("table3", "table4", "table5", "table9", "table10")
        for row in table_rows(experiment, name)
    ]
    assert shared.count("DPAR-L") == 5
    assert model_cells(experiment)["DPAR-L"].milestones == ("epoch50", "epoch100", "epoch200", "epoch300")


def test_how_queries_are_pooled_is_data_and_the_default_is_not_written():
    experiment = with_rows({"model": "dpar"}, **{"transformer.query_pooling": ["max", "mean"]})
    usual, mean = (row.model for row in table_rows(experiment, "t"))
    assert (usual.slug, mean.slug) == ("dpar", "dpar_querypoolingmean")
    assert usual.transformer == experiment.models["dpar"]
    assert "query_pooling" not in usual.transformer.model_dump()
    assert mean.transformer.model_dump()["query_pooling"] == "mean"


def test_a_grid_is_the_product_of_what_varies():
    experiment = with_rows({"model": "dpar"}, **{"patchify.p_avg": [1.4, 1.8], "patchify.max_length": [2, 4, None]})
    slugs = [row.model.slug for row in table_rows(experiment, "t")]
    assert slugs == [
        "dpar_pavg1.4_pmax2",
        "dpar_pavg1.4",
        "dpar_pavg1.4_pmaxnone",
        "dpar_pmax2",
        "dpar",
        "dpar_pmaxnone",
    ]
    assert p_avg_targets(experiment) == [1.4, 1.8]


def test_training_seeds_repeat_every_row_and_leave_the_first_cell_as_it_was():
    once = with_rows({"model": "dpar", "inference.p_avg": 2.2})
    repeated = once.model_copy(update={"training_seeds": (0, 7)})
    (row,) = table_rows(repeated, "t")
    assert row.model == table_rows(once, "t")[0].model
    assert [cell.slug for cell in row.models] == ["dpar", "dpar_seed7"]
    assert [cell.seed for cell in row.models] == [0, 7]
    assert [cell.slug for cell in row.samples] == ["dpar-pavg2.2", "dpar_seed7-pavg2.2"]
    assert {cell.model for cell in row.samples} == {"dpar", "dpar_seed7"}
    assert set(model_cells(repeated)) == {"dpar", "dpar_seed7", "llamagen"}  # no table asks for llamagen
    assert "training_seeds" not in once.model_dump()


def test_a_threshold_in_one_form_takes_the_place_of_the_other():
    experiment = with_rows({"model": "dpar", "patchify.threshold": 3.5})
    (row,) = table_rows(experiment, "t")
    assert (row.model.patchify.threshold, row.model.patchify.p_avg) == (3.5, None)
    assert row.model.slug == "dpar_eth3.5"


def test_settings_of_inference_change_the_samples_and_not_the_training():
    experiment = with_rows({"model": "dpar"}, {"model": "dpar", "inference.p_avg": 2.2, "sampling.cfg_scale": 1.5})
    first, second = table_rows(experiment, "t")
    assert first.model == second.model
    assert second.sample.slug == "dpar-cfg1.5-pavg2.2"
    assert second.sample.patchify.p_avg == 2.2
    assert set(sample_cells(experiment)) == {"dpar", "dpar-cfg1.5-pavg2.2"}


GATES = {
    "small": {"model": {"architecture": "llamagen", "width": 64, "heads": 2, "layers": 1}, "training": {"steps": 1}},
    "distilled": {"kind": "distilled", "model": {"variant": "LlamaGen-B", "layers": 2}, "training": {"steps": 1}},
}


def with_gates(*rows, **vary):
    return parse_experiment(demo(gates=GATES, tables={"t": {"title": "t", "rows": list(rows), "vary": vary}}), "test")


def test_a_gate_changes_the_samples_and_not_the_training():
    experiment = with_gates(
        {"model": "dpar"},
        {"model": "dpar", "inference.p_avg": 2.2, "sampling.cfg_scale": 1.5},
        **{"inference.gate": [None, "small", "distilled"]},
    )
    rows = table_rows(experiment, "t")
    assert {row.model.slug for row in rows} == {"dpar"}
    cells = sample_cells(experiment)
    assert {slug: cell.gate for slug, cell in cells.items()} == {
        "dpar": None,
        "dpar-gatesmall": "small",
        "dpar-gatedistilled": "distilled",
        "dpar-cfg1.5-pavg2.2": None,
        "dpar-cfg1.5-pavg2.2-gatesmall": "small",
        "dpar-cfg1.5-pavg2.2-gatedistilled": "distilled",
    }
    assert cells["dpar-gatesmall"].patchify == cells["dpar"].patchify
    # one of each patch rule is compared, whatever the number of gates
    assert [cell.patchify.p_avg for cell in gated_cells(experiment)] == [1.8, 2.2]
    assert experiment.networks == {
        "entropy_model": experiment.entropy_model,
        "gates/small": experiment.gates["small"],
        "gates/distilled": experiment.gates["distilled"],
    }
    assert not gated_cells(with_rows({"model": "dpar"}))


def test_an_experiment_without_gates_is_written_as_before_there_were_any():
    assert "gates" not in with_rows({"model": "dpar"}).model_dump(mode="json")
    experiment = with_gates({"model": "dpar"}, **{"inference.gate": ["small", "distilled"]})
    assert parse_experiment(experiment.model_dump(mode="json"), "again") == experiment


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"inference.gate": "smal"}, "no network gates/smal .* entropy_model, gates/small, gates/distilled"),
        ({"inference.gate": ["small"]}, r"no network gates/\['small'\]"),
        ({"inference.strategy": "static", "inference.gate": "small"}, "static patches ask no entropies"),
        ({"model": "llamagen", "inference.gate": "small"}, "has no patches"),
        ({}, r"gates\.distilled: no row of a table samples through it"),
    ],
)
def test_a_gate_that_cannot_be_used_is_named(row, named):
    with pytest.raises(InputError, match=named):
        sample_cells(with_gates({"model": "dpar"} | row))


def test_patches_are_analysed_of_a_dpar_as_it_was_trained_and_a_llamagen_as_wide():
    def slugs(*rows, **vary):
        return [cell.slug for cell in analysed_cells(with_rows(*rows, **vary))]

    assert slugs({"model": "llamagen"}, {"model": "dpar"}) == ["dpar", "llamagen"]
    assert slugs({"model": "llamagen", "transformer.width": 192, "transformer.heads": 6}, {"model": "dpar"}) == ["dpar"]
    changed = [{"model": "dpar", "inference.max_length": 2}, {"model": "dpar", "patchify.strategy": "static"}]
    assert slugs(*changed, {"model": "llamagen"}) == []
    assert slugs(*changed, {"model": "dpar", "patchify.max_length": 8}) == ["dpar_pmax8"]
    assert [cell.milestone for cell in analysed_cells(load_experiment(CONFIG / "imagenet256.yaml"))] == ["epoch300"] * 2


def test_the_papers_numbers_are_kept_apart_from_what_varies():
    experiment = with_rows({"model": "dpar", "paper.fid": 3.32})
    (row,) = table_rows(experiment, "t")
    assert row.paper == {"fid": 3.32}
    assert row.values == {"model": "dpar"}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"model": "dparr"}, "dparr"),
        ({"model": "dpar", "patchfy.p_avg": 2}, "patchfy.p_avg"),
        ({"model": "dpar", "patchify.max_len": 2}, "max_len"),
        ({"model": "dpar", "milestone": 17}, "milestone 17"),
        ({"model": "dpar", "paper.fld": 3.3}, "paper.fld"),
        ({"model": "dpar", "paper.fid": "3,3"}, "paper.fid"),
        ({"model": "dpar", "paper.fid": True}, "paper.fid"),
        ({"model": "dpar", "paper.fid": float("nan")}, "paper.fid"),
        ({"model": "dpar", "patchify.max_length": True}, "max_length: expected a number"),
        ({"model": "llamagen", "patchify.max_length": 2}, "has no patches"),
    ],
)
def test_a_row_that_cannot_be_filled_is_named(row, named):
    with pytest.raises(InputError, match=r"tables\.t") as error:
        table_rows(with_rows(row), "t")
    assert named in str(error.value)


def test_thresholds_come_from_nats_or_from_calibration():
    experiment = with_rows({"model": "dpar"}, {"model": "dpar", "patchify.threshold": 3.5})
    calibrated, nats = (row.model.patchify for row in table_rows(experiment, "t"))
    found = {"p_avg": {"1.8": {"threshold": 4.25}}}
    assert threshold_of(calibrated, found) == 4.25
    assert threshold_of(nats, {}) == 3.5
    with pytest.raises(InputError, match=r"1\.8"):
        threshold_of(calibrated, {"p_avg": {}})


def test_milestones_of_a_training_rise():
    for cell in model_cells(load_experiment(CONFIG / "imagenet384.yaml")).values():
        numbers = [int(name.removeprefix("epoch")) for name in cell.milestones]
        assert all(a < b for a, b in pairwise(numbers))


def test_every_model_of_table_1_is_trained_and_sampled():
    for name in ("imagenet256", "imagenet384"):
        experiment = load_experiment(CONFIG / f"{name}.yaml")
        assert {cell.model for cell in sample_cells(experiment).values()} >= set(VARIANTS)
