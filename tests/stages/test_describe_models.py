"""The stage that prints Tables 1 and 8."""

import pandas as pd
import pytest

from dpar.commands.info import PAPER_GMACS, PAPER_PARAMETERS
from dpar.config import parse_experiment
from dpar.files import write_json
from dpar.stages import describe_models
from tests.test_config import CONFIG, demo, load_experiment


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


def test_a_threshold_in_nats_says_nothing_of_patches_at_another_resolution(tmp_path):
    experiment = parse_experiment(demo(patchify={"threshold": 3.0}), "test")
    assert describe_models.costs(experiment).set_index("Model").loc["dpar"].isna().all()
    assert "says nothing" in describe_models.cost_notes(experiment)[0]
