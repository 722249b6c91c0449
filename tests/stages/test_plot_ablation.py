"""The stage that draws one table."""

import pandas as pd
import pytest

from dpar.experiment.loading import parse_experiment
from dpar.files import read_json
from dpar.stages import make_table, plot_ablation
from tests.experiment.test_settings import demo
from tests.report import made_up
from tests.stages.test_make_table import arguments


@pytest.fixture
def grid_of_cells(tmp_path):
    """(experiment, files) with both tables of the demo made."""
    experiment = parse_experiment(demo(), "test")
    files = made_up.write(tmp_path, experiment)
    for table in experiment.tables:
        make_table.main(list(map(str, arguments(tmp_path, files, table))))
    return experiment, files


def test_a_grid_becomes_heat_maps_with_thresholds_in_nats(tmp_path, grid_of_cells):
    experiment, files = grid_of_cells
    frame = pd.read_csv(tmp_path / "tables" / "threshold_by_length.csv")
    figure = plot_ablation.draw(experiment, "threshold_by_length", frame, read_json(files["noise-floor"]))
    axes = figure.axes[0]
    assert axes.get_title() == "FD[classifier, 4]"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["2", "4"]
    assert [t.get_text().split("\n")[0] for t in axes.get_yticklabels()] == ["2.800", "3.600"]
    assert [t.get_text() for t in axes.texts] == ["31", "41", "51", "21"]


def test_a_grid_keeps_the_order_of_the_experiment(tmp_path, grid_of_cells):
    _, files = grid_of_cells
    values = demo()
    values["tables"]["threshold_by_length"]["vary"]["patchify.max_length"] = [4, 16, None, 2]
    frame = pd.DataFrame(
        {"patchify.p_avg": p, "patchify.max_length": length, "frechet_distance": p * 10 + place}
        for p in (1.8, 1.4)
        for place, length in enumerate(["4", "16", "none", "2"])
    )
    figure = plot_ablation.draw(
        parse_experiment(values, "test"), "threshold_by_length", frame, read_json(files["noise-floor"])
    )
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["4", "16", "none", "2"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1.8", "1.4"]
    assert [t.get_text() for t in axes.texts] == ["18", "19", "20", "21", "14", "15", "16", "17"]


def test_a_list_becomes_points_with_the_noise_floor(tmp_path, grid_of_cells):
    experiment, files = grid_of_cells
    frame = pd.read_csv(tmp_path / "tables" / "comparison.csv")
    figure = plot_ablation.draw(experiment, "comparison", frame, read_json(files["noise-floor"]))
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["llamagen", "dpar"]
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in axes.lines)


def test_the_stage_writes_the_picture(tmp_path, grid_of_cells):
    _, files = grid_of_cells
    output = tmp_path / "figures" / "comparison.png"
    plot_ablation.main(
        [
            *("--experiment", str(tmp_path / "experiment.json"), "--table", "comparison"),
            *("--csv", str(tmp_path / "tables" / "comparison.csv")),
            *("--noise-floor", str(files["noise-floor"]), "--output", str(output)),
        ]
    )
    assert output.read_bytes().startswith(b"\x89PNG")


def test_a_table_over_the_length_of_training_becomes_curves_beside_the_papers(tmp_path):
    values = demo(training={"epochs": 300, "milestones": [50, 100]})
    values["tables"] = {"t": {"title": "T", "rows": [{"model": "dpar"}], "vary": {"milestone": [50, 300]}}}
    experiment = parse_experiment(values, "test")
    frame = pd.DataFrame(
        {
            "source": ["quoted, diffusion", "made here", "made here"],
            "model": ["ADM", "dpar", "dpar"],
            "milestone": [None, "epoch300", "epoch50"],
            "frechet_distance": [None, 3.0, 5.0],
            "paper_fid": [4.59, None, 5.96],
        }
    )
    floor = {"metric": "FID", "frechet_distance": {"mean": 0.5, "sd": 0.1}}
    ours, theirs = plot_ablation.draw(experiment, "t", frame, floor).axes[0].lines
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([50, 300], [5.0, 3.0])
    assert (list(theirs.get_xdata()), list(theirs.get_ydata())) == ([50], [5.96])
    other = plot_ablation.draw(experiment, "t", frame, {**floor, "metric": "FD[classifier,4]"})
    assert len(other.axes[0].lines) == 1, "the paper's FID says nothing next to another distance"


def test_rows_of_one_model_with_other_settings_are_curves_of_their_own(tmp_path):
    values = demo(training={"epochs": 300, "milestones": [50, 100]})
    rows = [{"model": "dpar"}, {"model": "dpar", "patchify.max_length": 2}]
    rows += [{"model": "dpar", "sampling.cfg_scale": 1.5}, {"model": "llamagen"}]
    vary = {"milestone": [50, 100, 300]}
    base = {"transformer.dropout": 0.0}
    values["tables"] = {"t": {"title": "T", "rows": rows, "vary": vary, "base": base, "paper": "figure4"}}
    experiment = parse_experiment(values, "test")
    files = made_up.write(tmp_path, experiment)
    make_table.main(list(map(str, arguments(tmp_path, files, "t"))))
    frame = pd.read_csv(tmp_path / "tables" / "t.csv")
    axes = plot_ablation.draw(experiment, "t", frame, read_json(files["noise-floor"])).axes
    lines = axes[0].lines
    names = ["dpar", "dpar, $P_{max}$ 2", "dpar, cfg_scale 1.5", "llamagen"]
    assert [line.get_label() for line in lines] == names
    measured = frame["frechet_distance"].tolist()
    for number, line in enumerate(lines):
        assert list(line.get_xdata()) == [50, 100, 300]
        assert list(line.get_ydata()) == measured[3 * number : 3 * number + 3]
    assert [a.get_ylabel() for a in axes if a.get_ylabel()] == ["FD[classifier, 4]", "validation NLL (nats/token)"]
    likelihoods = frame["nll"].tolist()
    for number, line in enumerate(axes[len(axes) // 2].lines):
        assert list(line.get_ydata()) == likelihoods[3 * number : 3 * number + 3]


def test_a_course_is_drawn_against_compute_with_bands_over_trainings():
    values = demo(training={"epochs": 4, "milestones": [2]})
    values["tables"] = {"t": {"title": "T", "rows": [{"model": "dpar"}], "vary": {"milestone": [2, 4]}}}
    frame = pd.DataFrame(
        {
            "model": ["llamagen", "llamagen", "dpar", "dpar"],
            "milestone": ["epoch2", "epoch4"] * 2,
            "frechet_distance": [5.0, 3.0, 4.0, 2.0],
            "frechet_distance_sd": [0.5, 0.3, 0.4, 0.2],
            "nll": [3.0, 2.0, 3.5, 2.5],
            "training_gmacs": [10.0, 10.0, 8.0, 8.0],
        }
    )
    floor = {"metric": "FD", "frechet_distance": {"mean": 0.5, "sd": 0.1}}
    epochs, compute, below, _ = plot_ablation.draw(parse_experiment(values, "test"), "t", frame, floor).axes
    assert compute.get_xlabel() == "training MACs, in epochs of llamagen"
    llamagen, dpar = compute.lines
    assert (list(llamagen.get_xdata()), list(llamagen.get_ydata())) == ([2, 4], [5, 3])
    assert dpar.get_xdata() == pytest.approx([1.6, 3.2])
    assert len(epochs.collections) == len(compute.collections) == 2
    assert not below.collections, "no spread was measured"
