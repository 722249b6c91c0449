"""The stage that prints Tables 1 and 8."""

import pandas as pd
import pytest

from dpar.experiment.loading import parse_experiment
from dpar.experiment.settings import Patchify
from dpar.files import write_json
from dpar.paper import PAPER_GMACS, PAPER_PARAMETERS
from dpar.stages import describe_models
from dpar.workflow import planning
from tests.experiment.test_settings import CONFIG, demo, load_experiment


def test_the_papers_numbers_come_out_beside_the_papers_own():
    experiment = load_experiment(CONFIG / "imagenet256.yaml")
    found = describe_models.architectures(experiment).set_index("Model")
    assert found["Paper (M)"].to_dict() == PAPER_PARAMETERS
    assert found.drop("DPAR-B")["Δ (%)"].abs().max() < 3
    assert found.loc["DPAR-L", ["Encoder", "Layers", "Decoder", "Width", "Heads"]].tolist() == [1, 19, 4, 1024, 16]
    costs = describe_models.costs(experiment).set_index("Model")
    assert costs["Paper (G)"].dropna().to_dict() == {m: g for (m, side), g in PAPER_GMACS.items() if side == 256}
    assert costs["Δ (%)"].abs().max() < 0.2


def test_small_models_stand_without_the_paper(tmp_path):
    experiment = parse_experiment(demo(), "test")
    write_json(tmp_path / "experiment.json", experiment.model_dump(mode="json"))
    flags = ["--experiment", str(tmp_path / "experiment.json"), "--output", str(tmp_path / "tables")]
    describe_models.main(flags)
    table8 = pd.read_csv(tmp_path / "tables" / "table8.csv").set_index("Model")
    assert table8.loc["dpar", "Patches"] == pytest.approx(64 / 1.8)
    assert table8["Paper (G)"].isna().all()
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{name}.{form}" for name in ("table1", "table8") for form in ("csv", "md", "tex")
    }


def test_the_mean_patch_length_that_is_asked_for_goes_before_the_papers():
    experiment = load_experiment(CONFIG / "imagenet256.yaml")
    assert describe_models.assumed_patches(experiment) == 141.8
    longer = experiment.model_copy(update={"patchify": Patchify(p_avg=3.0)})
    costs = describe_models.costs(longer).set_index("Model")
    assert costs["Patches"].dropna().unique().tolist() == pytest.approx([256 / 3])
    assert costs["Forward (G)"].to_dict()["DPAR-L"] < 45, "the paper's patches cost 56.74"
    # the bill, which meets P_avg as a mean over made-up images, says about the same
    assert planning.assumed_patches(longer, longer.patchify) == pytest.approx(256 / 3, rel=0.01)


def test_another_threshold_takes_the_patches_that_the_paper_prints_for_it():
    experiment = load_experiment(CONFIG / "imagenet256.yaml")

    def of(threshold):
        changed = {"patchify": experiment.patchify.model_copy(update={"threshold": threshold})}
        return describe_models.assumed_patches(experiment.model_copy(update=changed))

    assert of(8.1) == pytest.approx(256 / 2.16, rel=0.02)
    assert of(7.8) == 141.8 > of(7.9) > of(8.0) > of(8.1)
    longer = experiment.model_copy(update={"patchify": experiment.patchify.model_copy(update={"max_length": 8})})
    assert describe_models.assumed_patches(longer) < 140, "patches of 5 to 8 tokens are fewer"
    across = experiment.model_copy(update={"patchify": experiment.patchify.model_copy(update={"row_boundary": False})})
    assert describe_models.assumed_patches(across) < 140, "so are those that run over the end of a row"


def test_a_threshold_in_nats_says_nothing_of_patches_at_another_resolution(tmp_path):
    experiment = parse_experiment(demo(patchify={"threshold": 3.0}), "test")
    assert describe_models.costs(experiment).set_index("Model").loc["dpar"].isna().all()
    assert "says nothing" in describe_models.cost_notes(experiment)[0]
