"""The stage that draws the metric against the cost of training."""

import pandas as pd

from dpar.files import write_json
from dpar.stages import plot_compute


def test_each_measured_model_is_one_point_and_its_departures_are_none(tmp_path, monkeypatch):
    state = {"training": "dpar", "milestone": "step400"}
    row = {"model": "dpar", "cell": "dpar", **state, "training_gmacs": 2.0, "frechet_distance": 3.0}
    other = {
        "model": "llamagen",
        "cell": "llamagen-cfg1.75",
        "training": "llamagen",
        "milestone": "step400",
        "training_gmacs": 4.0,
        "frechet_distance": 5.0,
    }
    unmeasured = {
        "model": "larger",
        "cell": "larger",
        "training": "larger",
        "milestone": "step400",
        "training_gmacs": 4.0,
    }
    guided = row | {"cell": "dpar-cfg4", "frechet_distance": 3.5}
    departing = row | {"cell": "dpar_pmax4", "training": "dpar_pmax4", "frechet_distance": 1.0}
    early = row | {"cell": "dpar-step50", "milestone": "step50", "frechet_distance": 1.0}
    elsewhere = row | {"cell": "dpar-eth3", "inference.threshold": 3.0, "frechet_distance": 1.0}
    pd.DataFrame([row, other]).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame([row, unmeasured, guided, departing, early, elsewhere]).to_csv(tmp_path / "b.csv", index=False)
    write_json(tmp_path / "floor.json", {"metric": "FD", "frechet_distance": {"mean": 0.5, "sd": 0.1}})
    write_json(tmp_path / "experiment.json", {})
    drawn = {}

    def remember(points, metric, floor, draw=plot_compute.metric_against_cost):
        drawn.update(points=points, metric=metric, floor=floor)
        return draw(points, metric, floor)

    monkeypatch.setattr(plot_compute, "metric_against_cost", remember)
    plot_compute.main(
        [
            *("--experiment", str(tmp_path / "experiment.json"), "--noise-floor", str(tmp_path / "floor.json")),
            *("--tables", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--output", str(tmp_path / "compute.png")),
        ]
    )
    assert [(p["label"], p["cost"], p["value"]) for p in drawn["points"]] == [
        ("dpar", 2.0, 3.0),
        ("llamagen-cfg1.75", 4.0, 5.0),
    ]
    assert (drawn["metric"], drawn["floor"]) == ("FD", 0.5)
    assert (tmp_path / "compute.png").read_bytes().startswith(b"\x89PNG")
