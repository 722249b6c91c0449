"""The stage that draws the metric against the cost of training."""

import pandas as pd
import pytest

from dpar.experiment.loading import parse_experiment
from dpar.files import write_json
from dpar.stages import plot_compute
from tests.experiment.test_settings import demo
from tests.report.made_up import made_up_floor

DPAR = {
    "model": "dpar",
    "cell": "dpar",
    "training": "dpar",
    "milestone": "step400",
    "training_gmacs": 2.0,
    "frechet_distance": 3.0,
}


@pytest.fixture
def plotted(tmp_path, monkeypatch):
    """Draws what `tables`, each a list of rows, show; what the figure was given."""
    write_json(tmp_path / "floor.json", made_up_floor())
    given = {}

    def remember(points, metric, floor, draw=plot_compute.metric_against_cost):
        given.update(points=points, metric=metric, floor=floor)
        given["figure"] = draw(points, metric, floor)
        return given["figure"]

    monkeypatch.setattr(plot_compute, "metric_against_cost", remember)

    def draw(*tables, **changes):
        experiment = parse_experiment(demo(**changes), "test")
        write_json(tmp_path / "experiment.json", experiment.model_dump(mode="json"))
        paths = [tmp_path / f"{number}.csv" for number in range(len(tables))]
        for path, rows in zip(paths, tables, strict=True):
            pd.DataFrame(rows).to_csv(path, index=False)
        flags = ["--experiment", tmp_path / "experiment.json", "--tables", *paths]
        flags += ["--noise-floor", tmp_path / "floor.json", "--output", tmp_path / "compute.png"]
        plot_compute.main(list(map(str, flags)))
        assert (tmp_path / "compute.png").read_bytes().startswith(b"\x89PNG")
        return given

    return draw


def test_each_measured_model_is_one_point_and_its_departures_are_none(plotted):
    other = DPAR | {"model": "llamagen", "cell": "llamagen-cfg1.75", "training": "llamagen"}
    other |= {"training_gmacs": 4.0, "frechet_distance": 5.0}
    unmeasured = DPAR | {"cell": "dpar-cfg1", "frechet_distance": None}
    guided = DPAR | {"cell": "dpar-cfg4", "frechet_distance": 3.5}
    departing = DPAR | {"cell": "dpar_pmax4", "training": "dpar_pmax4", "frechet_distance": 1.0}
    early = DPAR | {"cell": "dpar-step50", "milestone": "step50", "frechet_distance": 1.0}
    elsewhere = DPAR | {"cell": "dpar-eth3", "inference.threshold": 3.0, "frechet_distance": 1.0}
    given = plotted([DPAR, other], [DPAR, unmeasured, guided, departing, early, elsewhere])
    assert [(p["label"], p["cost"], p["value"]) for p in given["points"]] == [
        ("dpar", 2.0, 3.0),
        ("llamagen-cfg1.75", 4.0, 5.0),
    ]
    assert (given["metric"], given["floor"]) == ("FD[classifier, 4]", 0.5)


def test_the_first_of_several_trainings_may_have_another_seed(plotted):
    row = DPAR | {"cell": "dpar_seed1-cfg3", "training": "dpar_seed1", "frechet_distance_sd": 0.25}
    (point,) = plotted([row], training_seeds=[1, 0])["points"]
    assert (point["label"], point["spread"]) == ("dpar-cfg3", 0.25)


@pytest.mark.parametrize(
    "tables",
    [
        [],
        [[DPAR | {"cell": "dpar_pmax4", "training": "dpar_pmax4"}]],
        [[DPAR | {"inference.gate": "small"}]],
        [[DPAR | {"frechet_distance": None}]],
    ],
)
def test_where_no_model_is_as_described_the_figure_says_so(plotted, tables):
    given = plotted(*tables)
    assert given["points"] == []
    (axes,) = given["figure"].axes
    assert any(text.get_text().startswith("No table shows a model as it is described") for text in axes.texts)
