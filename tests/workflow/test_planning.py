"""The bill: what is shared is paid once, counts are those of `dpar info`, and unknowns are said."""

import pytest

from dpar.errors import InputError
from dpar.evaluation.cost import network, parameters
from dpar.experiment.cells import model_cells
from dpar.experiment.settings import Patchify
from dpar.model import flops
from dpar.workflow import planning
from tests.experiment.test_settings import CONFIG, demo, load_experiment, parse_experiment

DATA = planning.Data(1000, 10, {})


@pytest.fixture(scope="module")
def imagenet():
    return load_experiment(CONFIG / "imagenet256.yaml")


def trained(jobs):
    return {key[1:] for key in jobs if key[0] == "train_model"}


def test_the_default_cell_of_the_ablations_is_the_first_piece_of_the_main_training(imagenet):
    table4, table11 = (planning.jobs(imagenet, name, DATA) for name in ("table4", "table11"))
    assert trained(table4) & trained(table11) == {("DPAR-L", "epoch50")}
    pieces = [job for key, job in table11.items() if key[:2] == ("train_model", "DPAR-L")]
    config = network(imagenet, imagenet.models["DPAR-L"])
    patches = planning.assumed_patches(imagenet, imagenet.patchify)
    whole = 300 * 1000 * float(flops.training_gmacs(config, patches)) * 1e9
    assert sum(job.macs for job in pieces) == pytest.approx(whole)
    assert [job.macs / whole for job in pieces] == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3])
    weights = parameters(imagenet, imagenet.models["DPAR-L"])
    assert sum(job.bytes for job in pieces) == weights * (4 * 4 + planning.STATE_BYTES)


def test_a_figure_of_samples_is_drawn_and_not_measured(imagenet):
    jobs = planning.jobs(imagenet, "figure5", DATA)
    assert {key[0] for key in jobs} >= {"train_model", "sample_images", "score_entropies"}
    assert "extract_features" not in {key[0] for key in jobs}
    assert set(jobs) < set(planning.jobs(imagenet, "table11", DATA))


def test_a_linear_probe_costs_a_forward_pass_of_each_image(imagenet):
    found = planning.jobs(imagenet, "table7", DATA)
    probes = {key: job for key, job in found.items() if key[0] == "linear_probe"}
    assert {key[1:] for key in probes} == {("LlamaGen-L", "epoch300"), ("DPAR-L", "epoch300")}
    config = network(imagenet, imagenet.models["LlamaGen-L"])
    job = probes["linear_probe", "LlamaGen-L", "epoch300"]
    assert job.macs == pytest.approx((1000 + 10) * float(flops.full_gmacs(config)) * 1e9)
    assert probes.items() <= planning.jobs(imagenet, "all_tables", DATA).items()
    assert "linear_probe" not in {key[0] for key in planning.jobs(imagenet, "table2", DATA)}


def test_the_report_needs_every_table_and_the_samples_of_every_figure(imagenet):
    apart = [planning.jobs(imagenet, name, DATA) for name in (*imagenet.shown_tables, *imagenet.figures)]
    assert planning.jobs(imagenet, "report", DATA).keys() == {key for found in apart for key in found}
    assert not any("XXL" in key[1] for found in apart for key in found if key[0] == "train_model")
    assert ("train_model", "DPAR-XXL", "epoch300") in planning.jobs(imagenet, "largest", DATA)


def test_computed_tables_cost_nothing_and_unknown_ones_are_refused(imagenet):
    assert planning.jobs(imagenet, "table1", DATA) == {}
    assert planning.jobs(imagenet, "figure2", DATA) == planning.preparation(imagenet, DATA)
    with pytest.raises(InputError, match="table12"):
        planning.jobs(imagenet, "table12", DATA)


def test_every_view_is_encoded_and_scored_once(imagenet):
    found = planning.preparation(imagenet, DATA)
    views = 1000 * 20 + 10
    assert found["encode_images",].bytes == views * 256 * 2
    assert found["score_entropies",].bytes == 2 * views * 256 * 6
    assert found["encode_images",].macs == views * planning.tokenizer_macs(imagenet)[0]
    assert ("train_tokenizer",) not in found, "it is imported"


def test_the_assumed_patches_are_the_papers_where_it_prints_them(imagenet):
    def length(**changes):
        return 256 / planning.assumed_patches(imagenet, imagenet.patchify.model_copy(update=changes))

    # M is a mean over images and P_avg a mean of T / M, which is a little larger
    assert length() == pytest.approx(1.81, rel=0.01)
    assert length(threshold=8.1) == pytest.approx(2.16, rel=0.01)
    assert length(threshold=7.6) == pytest.approx(1.59, rel=0.01), "on the line through 7.8 and 7.9"
    assert length(max_length=1) == 1
    assert length(max_length=2) < length() < length(max_length=16) < length(max_length=16, row_boundary=False)
    static = Patchify(strategy="static", p_avg=1.81)
    assert planning.assumed_patches(imagenet, static) == 142


def test_patches_that_were_counted_are_taken_instead(imagenet):
    model = model_cells(imagenet)["DPAR-L"]
    counted = planning.Data(1000, 10, {"DPAR-L": 100.0})
    assert planning.patches_of(imagenet, model, model.patchify, counted) == 100.0
    assert planning.patches_of(imagenet, model, model.patchify.model_copy(update={"threshold": 7.9}), counted) != 100.0
    assert planning.patches_of(imagenet, model_cells(imagenet)["LlamaGen-L"], model.patchify, counted) is None


def test_a_threshold_whose_patches_nobody_knows_is_refused():
    experiment = parse_experiment(demo(patchify={"threshold": 3.0}), "test")
    with pytest.raises(InputError, match=r"3.0 nats gives at 64 pixels is not known"):
        planning.assumed_patches(experiment, experiment.patchify)


def test_convolutions_are_counted():
    """Inception v3: 5.7e9 multiply-accumulates at 299 pixels, as everywhere in the literature."""
    assert planning.inception_macs() == pytest.approx(5.7e9, rel=0.02)


def test_gates_that_are_trained_are_paid_for_and_imported_ones_are_not(imagenet):
    found = planning.jobs(imagenet, "gates", DATA)
    assert {key for key in found if key[0] == "train_entropy_model"} == {
        ("train_entropy_model",),
        ("train_entropy_model", "small"),
        ("train_entropy_model", "distilled"),
    }
    small, distilled = (found["train_entropy_model", gate].macs for gate in ("small", "distilled"))
    assert small > distilled > 0
