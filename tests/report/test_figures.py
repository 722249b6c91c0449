"""Figures: outlines follow patches, and the same figure gives the same bytes."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from dpar.report import figures
from dpar.report.figures import Panel


def outline(axes):
    """The drawn segments as a set of pairs of end points."""
    return {tuple(sorted(zip(*line.get_data(), strict=True))) for line in axes.lines}


def test_outlines_stand_between_patches_and_around_the_grid_only():
    axes = figures.new_figure(2, 2).subplots()
    figures.draw_patches(axes, np.array([[0, 1, 1], [2, 2, 2]]))
    inner = {((0.5, -0.5), (0.5, 0.5))} | {((c - 0.5, 0.5), (c + 0.5, 0.5)) for c in range(3)}
    border = {((c - 0.5, y), (c + 0.5, y)) for c in range(3) for y in (-0.5, 1.5)}
    border |= {((x, r - 0.5), (x, r + 0.5)) for r in range(2) for x in (-0.5, 2.5)}
    assert outline(axes) == inner | border


def test_entropy_maps_show_each_image_with_its_number_of_patches():
    entropy = np.array([[[np.inf, 1.0], [2.0, 3.0]]], np.float32)
    ids = np.array([[[0, 1], [2, 2]]])
    figure = figures.entropy_maps(np.zeros((1, 4, 4, 3), np.uint8), entropy, ids, 2.5)
    picture, entropies = figure.axes[0], figure.axes[1]
    assert picture.images
    assert "3 patches" in entropies.get_xlabel()
    assert np.asarray(entropies.images[0].get_array()).max() == 3.0  # the first token's infinity does not set the scale


def test_a_heat_map_frames_the_smallest_and_names_what_is_missing():
    values = np.array([[3.0, 1.0], [np.nan, 2.0]])
    panels = {"FD": values, "P_avg": values}
    figure = figures.heat_maps(panels, ["a", "b"], ["2", "4"], "rows", "columns", unranked=["P_avg"])
    axes = figure.axes[0]
    assert not figure.axes[1].patches
    assert {text.get_text() for text in axes.texts} == {"3", "1", "missing", "2"}
    assert axes.patches[-1].get_xy() == (0.55, -0.45)


def test_ties_with_the_best_have_a_broken_frame():
    values, tied = np.array([[1.0, 1.1], [3.0, 4.0]]), np.array([[False, True], [False, False]])
    figure = figures.heat_maps({"FD": values}, ["a", "b"], ["2", "4"], "r", "c", tied={"FD": tied})
    frames = {patch.get_xy(): patch.get_linestyle() for patch in figure.axes[0].patches}
    assert frames == {(0.55, -0.45): "--", (-0.45, -0.45): "-"}


def test_a_scale_fits_what_varies_and_no_less_than_chance():
    def scale(values, **more):
        (picture,) = figures.heat_maps({"FD": np.array([values])}, ["a"], ["1", "2"], "r", "c", **more).axes[0].images
        return pytest.approx(picture.get_clim())

    assert scale([1.0, 3.0]) == (1.0, 3.0)
    assert scale([1.0, 3.0], spreads={"FD": 0.1}) == (1.0, 3.0)
    assert scale([1.9, 2.1], spreads={"FD": 1.0}) == (1.0, 3.0)
    assert scale([2.0, 2.0]) == (1.98, 2.02)
    assert scale([np.nan, np.nan]) == (0.0, 1.0)


def test_panels_go_on_in_a_line_below():
    panels = {f"panel {i}": np.eye(2) for i in range(5)}
    figure = figures.heat_maps(panels, ["a", "b"], ["2", "4"], "r", "c")
    places = [axis.get_subplotspec().num1 for axis in figure.axes if axis.get_title()]
    assert places == [0, 1, 2, 3, 4]
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 3)
    figure = figures.error_bars({title: ([1.0, 2.0], [0.1, 0.2]) for title in panels}, ["dpar", "llamagen"])
    assert [axis.get_title() for axis in figure.axes] == list(panels)


def test_curves_of_one_colour_differ_in_shade_line_and_mark():
    names = [f"dpar_{i}" for i in range(6)] + ["llamagen"]
    (axes,) = figures.curves([Panel("step", "nll", {name: ([1, 2], [3, 4]) for name in names})]).axes
    looks = {(to_hex(line.get_color()), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len({colour for colour, _, _ in looks}) == len(names)
    assert len({(line, mark) for _, line, mark in looks}) == 6


@pytest.mark.parametrize(("name", "colour"), [("DPAR-L_pmax2", figures.DPAR), ("LlamaGen-B", figures.LLAMAGEN)])
def test_a_model_has_one_colour_everywhere(name, colour):
    assert figures.colour_of(name) == colour
    figure = figures.metric_against_cost(
        [{"label": name, "model": name, "cost": 1.0, "value": 2.0, "spread": 0.1}], "FD", 0.5
    )
    assert to_hex(figure.axes[0].lines[0].get_color()) == colour


def test_the_same_figure_gives_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        figures.save(figures.curves([Panel("step", "nll", {"dpar": ([1, 2], [3, 4])})]), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_sample_blocks_are_titled_and_rows_named():
    block = np.zeros((2, 3, 8, 8, 3), np.uint8)
    figure = figures.sample_columns({"real": block, "dpar": block}, ["class 0", "class 5"])
    assert [axes.get_title() for axes in figure.axes] == ["real", "dpar"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["class 0", "class 5"]
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (16, 24, 3)


def test_blocks_that_find_no_place_go_on_below():
    block = np.zeros((2, 3, 8, 8, 3), np.uint8)
    names = [f"dpar{i}" for i in range(8)]
    figure = figures.sample_columns(dict.fromkeys(names, block), ["class 0", "class 5"])
    assert [axes.get_title() for axes in figure.axes if axes.images] == names
    assert sum(len(axes.get_yticklabels()) for axes in figure.axes if axes.images) == 3 * 2


def test_the_front_holds_what_nothing_beats():
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0)]
    front = figures.pareto_front(points)
    assert front == [0, 1, 4]
    beaten = set(range(5)) - set(front)
    for i in beaten:
        x, y = points[i]
        assert any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)


def test_the_papers_points_are_hollow_and_beside_the_curves():
    printed = {"DPAR-B": ([50], [5.5])}
    figure = figures.curves([Panel("epochs", "FID", {"DPAR-B": ([50, 100], [5.0, 4.0])}, printed=printed)])
    ours, theirs = figure.axes[0].lines
    assert (list(ours.get_xdata()), ours.get_marker()) == ([50, 100], "o")
    assert (list(theirs.get_ydata()), theirs.get_markerfacecolor()) == ([5.5], "none")


def test_a_curve_has_a_band_of_its_standard_deviations():
    lines = {"dpar": ([1, 2], [3.0, 2.0]), "llamagen": ([1, 2], [4.0, 3.0])}
    (axes,) = figures.curves([Panel("epochs", "NLL", lines, spreads={"dpar": [0.5, 0.25]})]).axes
    (band,) = axes.collections
    assert {tuple(corner) for corner in band.get_paths()[0].vertices} >= {(1, 2.5), (1, 3.5), (2, 1.75), (2, 2.25)}
    assert to_hex(band.get_facecolor()[0]) == figures.DPAR


def test_panels_of_a_row_share_the_y_axis_and_one_legend_names_the_models():
    lines = {"dpar": ([1, 2], [3.0, 2.0])}
    rows = [[Panel(x, y, lines) for x in ("epochs", "MACs")] for y in ("FD", "NLL")]
    figure = figures.curves(*rows)
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes] == [
        ("epochs", "FD"), ("MACs", ""), ("epochs", "NLL"), ("MACs", "")
    ]  # fmt: skip
    assert [axes.get_legend() is not None for axes in figure.axes] == [False, True, False, False]


@pytest.mark.parametrize(("least", "scale"), [(1.0, "log"), (3.0, "linear"), (0.0, "linear"), (float("nan"), "linear")])
def test_a_wide_range_has_a_logarithmic_axis(least, scale):
    figure = figures.curves([Panel("epochs", "FD", {"dpar": ([1, 2], [6.5, least])})] * 2)
    assert [axes.get_yscale() for axes in figure.axes] == [scale, scale]


def test_a_metric_named_after_a_users_network_is_no_formula(tmp_path):
    metric = "FD[a$_^$b,64]"
    drawn = [
        figures.heat_maps({metric: np.eye(2)}, ["a", "b"], ["2", "4"], "rows", "columns"),
        figures.error_bars({metric: ([1.0], [0.1])}, ["dpar"]),
        figures.curves([Panel("step", metric, {"dpar": ([1, 2], [3, 4])})]),
        figures.pareto({"cost": [("dpar", 1.0, 2.0)]}, metric),
    ]
    for number, figure in enumerate(drawn):
        figures.save(figure, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 0
