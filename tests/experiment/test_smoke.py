"""Smoke runs: what is cut of every shipped experiment, and what stays as it is."""

import pytest

from dpar.errors import InputError
from dpar.experiment.cells import model_cells, sample_cells, shard_of, table_rows
from dpar.experiment.loading import load_experiment, parse_experiment
from dpar.experiment.settings import Experiment
from dpar.experiment.smoke import SMOKES, composed, smoke_of
from dpar.files import write_json, write_text
from dpar.report import targets
from dpar.workflow.checks import look
from tests.experiment.test_settings import CONFIG, SHIPPED, demo

FEW = {"short": 512, "tiny": 100}


def kinds(rows):
    """Models and keys of rows, with those values that are no numbers."""
    plain = (bool, str, type(None))
    return {
        tuple(sorted((key, value if isinstance(value, plain) else "a number") for key, value in row.values.items()))
        for row in rows
    }


@pytest.mark.parametrize("kind", SMOKES)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_smoke_has_every_target_and_every_kind_of_row_and_little_to_do(name, kind):
    whole = load_experiment(CONFIG / f"{name}.yaml")
    cut = smoke_of(whole, kind)
    assert cut.name == f"{name}.smoke"
    assert look(cut, to_make=()).problems == []
    assert targets.targets(cut).keys() == targets.targets(whole).keys()
    for table in whole.tables:
        assert kinds(table_rows(cut, table)) == kinds(table_rows(whole, table)), table
    assert {cell.gate for cell in sample_cells(cut).values()} == {cell.gate for cell in sample_cells(whole).values()}
    images = cut.images.generated.train if cut.images.generated else cut.images.max_train
    assert images is not None
    assert images <= FEW[kind]
    for cell in model_cells(cut).values():
        per_epoch = images // cell.training.batch_size
        assert cell.training.length * (per_epoch if cell.training.unit == "epoch" else 1) <= 10
        assert bool(cell.training.milestones) == bool(whole.training.milestones)
        assert cell.training.batch_size == whole.training.batch_size or kind == "tiny"
    for cell in sample_cells(cut).values():
        sampling = cell.sampling
        assert sampling.num_images <= 2 * sampling.batch_size
        assert len(shard_of(sampling.num_images, sampling.batch_size, 0, sampling.shards)) >= 4


@pytest.mark.parametrize("name", SHIPPED)
def test_a_short_smoke_keeps_networks_and_files_and_a_tiny_one_what_is_imported(name):
    whole = load_experiment(CONFIG / f"{name}.yaml")
    short, tiny = (smoke_of(whole, kind) for kind in SMOKES)
    assert short.models == whole.models
    assert short.tokenizer.autoencoder == whole.tokenizer.autoencoder
    for cut in (short, tiny):
        for group in ("tokenizer", "entropy_model"):
            assert getattr(cut, group).weights == getattr(whole, group).weights
        assert (cut.codes.format, cut.codes.views) == (whole.codes.format, whole.codes.views)
        assert (cut.images.path("train"), cut.images.resolution) == (
            whole.images.path("train"),
            whole.images.resolution,
        )
        assert (cut.evaluation.extractor, cut.evaluation.reference) == (
            whole.evaluation.extractor, whole.evaluation.reference,
        )  # fmt: skip
    assert (tiny.tokenizer.autoencoder == whole.tokenizer.autoencoder) == (whole.tokenizer.weights is not None)
    assert all(model.sizes["width"] <= 128 for model in tiny.models.values())
    assert len({repr(model.sizes) for model in tiny.models.values()}) == len(whole.models)


def rich(**table) -> Experiment:
    """An experiment whose rows set what a smoke has to cut too."""
    rows = [
        {"model": "dpar", "sampling.num_images": 400, "sampling.shards": 3, "sampling.seeds": [4, 5, 6]},
        {"model": "dpar", "sampling.top_k": 200, "sampling.labels": "uniform"},
        {"model": "dpar", "transformer.width": 192, "transformer.layers": 5, "milestone": 300},
        {"model": "llamagen", "sampling.batch_size": 128},
    ]
    figure = {"title": "F", "rows": [{"model": "dpar"}], "classes": [7, 1]}
    return parse_experiment(
        demo(
            tables={"t": {"title": "T", "rows": rows} | table},
            figures={"f": figure},
            training__milestones=[100, 300],
            training_seeds=[3, 0, 1],
        ),
        "the test",
    )


@pytest.mark.parametrize("kind", SMOKES)
def test_what_rows_say_is_cut_as_well(kind):
    cut = smoke_of(rich(), kind)
    assert look(cut, to_make=()).problems == []
    assert cut.training.milestones == (2,)  # that of the two which a row names
    assert (cut.training.steps, cut.training_seeds) == (4, (0, 3))
    for cell in sample_cells(cut).values():
        assert cell.sampling.num_images in ((256, 257) if kind == "short" else (32, 33)), cell.slug
        assert cell.sampling.top_k <= cut.tokenizer.vocab_size
        assert (cell.sampling.labels, len(cell.sampling.seeds)) == ("balanced", 2)


@pytest.mark.parametrize("kind", SMOKES)
def test_numbers_are_left_at_the_ends_and_all_else_stays(kind):
    whole = rich(rows=[{"model": "dpar"}], vary={"patchify.max_length": [None, 1, 2, 4], "inference.p_avg": [1.2, 1.4]})
    vary = smoke_of(whole, kind).tables["t"].vary
    assert vary == {
        "patchify.max_length": (None, 1, 4) if kind == "short" else (None, 4),
        "inference.p_avg": (1.2, 1.4) if kind == "short" else (1.4,),
    }


def test_a_smoke_of_a_smoke_is_refused():
    cut = smoke_of(rich(), "tiny")
    with pytest.raises(InputError, match=r"demo\.smoke is a smoke already"):
        smoke_of(cut, "tiny")


def test_only_smokes_are_called_so(tmp_path):
    own = tmp_path / "own.yaml"
    write_text(own, f"extends: {CONFIG / 'demo.yaml'}\nname: own.smoke\n")
    for files, changes, place in (
        ([own], [], "own.yaml:2"),
        ([CONFIG / "demo.yaml"], ["name=own.smoke"], "--set name"),
    ):
        with pytest.raises(InputError, match=f"{place}.*: name: own.smoke is the name that --smoke gives to a trial"):
            composed(files, changes)
    cut, _ = composed([CONFIG / "demo.yaml"], smoke="tiny")
    write_json(tmp_path / "experiment.json", cut.model_dump(mode="json"))
    assert composed([tmp_path / "experiment.json"])[0] == cut, "the settings of one, by which its graph is audited"


def test_a_setting_that_was_cut_is_said_to_be_the_smokes(tmp_path):
    write_text(tmp_path / "own.yaml", f"extends: {CONFIG / 'demo.yaml'}\nname: own\n")
    _, places = composed([tmp_path / "own.yaml"], smoke="short")
    assert places.of_key("sampling.num_images") == "--smoke short"
    assert str(places.of_key("images.resolution")).startswith(str(CONFIG / "demo.yaml"))
