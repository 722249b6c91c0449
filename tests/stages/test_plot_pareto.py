"""The stage that draws quality against cost."""

import pandas as pd
import pytest

from dpar.errors import InputError
from dpar.experiment.loading import parse_experiment
from dpar.files import write_json
from dpar.stages import plot_pareto
from tests.experiment.test_settings import demo
from tests.report.made_up import made_up_floor

TABLE = "threshold_by_length"


@pytest.fixture
def frame():
    grid = [(p, m) for p in (1.4, 1.8) for m in (2, 4)]
    return pd.DataFrame(
        {
            "cell": [f"{p}-{m}" for p, m in grid],
            "patchify.p_avg": [p for p, _ in grid],
            "patchify.max_length": [m for _, m in grid],
            "threshold": [2 * p for p, _ in grid],
            "training_gmacs": [4.0, 3.0, 2.0, 1.0],
            "frechet_distance": [5.0, 6.0, 7.0, None],
        }
    )


def test_a_cell_is_a_point_named_by_what_varies(frame):
    panels = plot_pareto.points(parse_experiment(demo(), "test"), TABLE, frame)
    assert list(panels) == ["training GMACs/image"]
    assert panels["training GMACs/image"][0] == ("$E_{Th}$ 2.800, $P_{max}$ 2", 4.0, 5.0)
    assert len(panels["training GMACs/image"]) == 3


def test_the_stage_writes_the_picture(tmp_path, frame):
    write_json(tmp_path / "experiment.json", parse_experiment(demo(), "test").model_dump(mode="json"))
    write_json(tmp_path / "floor.json", made_up_floor())
    frame.assign(sampling_gmacs=[9.0, 8.0, 7.0, 6.0]).to_csv(tmp_path / "t.csv", index=False)
    flags = ["--experiment", tmp_path / "experiment.json", "--table", TABLE, "--csv", tmp_path / "t.csv"]
    flags += ["--noise-floor", tmp_path / "floor.json", "--output", tmp_path / "figures" / "p.png"]
    plot_pareto.main(list(map(str, flags)))
    assert (tmp_path / "figures" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_without_measurements_cannot_be_drawn(frame):
    with pytest.raises(InputError, match="no cell of threshold_by_length"):
        plot_pareto.points(parse_experiment(demo(), "test"), TABLE, frame.assign(frechet_distance=None))
