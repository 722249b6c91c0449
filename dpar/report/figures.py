"""Figures: entropy maps with patches, samples, curves and heat maps, cost. Arrays in, figures out."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from dpar.files import atomic_write

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9,
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "svg.hashsalt": "dpar",  # the same figure gives the same file
    }
)

# line and mark of curves of one colour; shades and these tell a dozen apart
_LINES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ((0, (5, 1)), "v"), ((0, (1, 1)), "P"), ("-", "X"))
_LONGEST = 44  # letters of a curve's name in a legend
_WRAPPED = 16  # letters in a line of a row's name
_WIDE = 5  # the largest value of a logarithmic axis is so many times the least, or more
ABREAST = 3  # blocks or panels next to each other: more would be too small to read on a page
THUMBNAIL = 0.62  # inches, the side of an image among many
DPAR, LLAMAGEN, NEUTRAL = "#c0392b", "#2c6fbb", "#888888"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches that needs no display."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path) -> None:
    """Writes the figure as PNG to `path` whole or not at all; the same figure gives the same bytes."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def colour_of(model: str) -> str:
    """One colour for DPAR, another for LlamaGen, in every figure."""
    name = model.lower()
    return LLAMAGEN if name.startswith("llamagen") else DPAR if name.startswith("dpar") else NEUTRAL


def _shades(colour: str, count: int) -> list[tuple[float, float, float]]:
    """So many shades of a colour, from dark to light."""
    red, green, blue = to_rgb(colour)
    light = [0.0] if count == 1 else np.linspace(-0.45, 0.5, count).tolist()  # towards black, towards white
    return [
        tuple(part * (1 + share) if share < 0 else part + (1 - part) * share for part in (red, green, blue))
        for share in light
    ]  # type: ignore[return-value]


def draw_patches(axes: Axes, patch_ids: NDArray[np.integer], colour: str = "black", width: float = 1.0) -> None:
    """Draws the outlines of patches on a grid of cells of side 1 whose first cell is centred on (0, 0).

    Args:
        patch_ids: (rows, columns), the patch of each token.
    """
    rows, columns = patch_ids.shape
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for row in range(rows + 1):
        for column in range(columns):
            if row in (0, rows) or patch_ids[row - 1, column] != patch_ids[row, column]:
                lines.append(((column - 0.5, column + 0.5), (row - 0.5, row - 0.5)))
    for column in range(columns + 1):
        for row in range(rows):
            if column in (0, columns) or patch_ids[row, column - 1] != patch_ids[row, column]:
                lines.append(((column - 0.5, column - 0.5), (row - 0.5, row + 0.5)))
    for x, y in lines:
        axes.plot(x, y, color=colour, linewidth=width, solid_capstyle="projecting", clip_on=False)


def entropy_maps(
    images: NDArray[np.uint8],
    entropy: NDArray[np.floating],
    patch_ids: NDArray[np.integer],
    threshold: float | None,
) -> Figure:
    """Images over their entropy maps with the outlines of their patches (Figure 2).

    Args:
        images: (N, height, width, 3).
        entropy: (N, rows, columns) in nats; the first token's infinity is drawn as the largest finite value.
        patch_ids: (N, rows, columns).
        threshold: E_Th in nats, for the title.
    """
    finite = np.where(np.isfinite(entropy), entropy, np.nan)
    low, high = float(np.nanmin(finite)), float(np.nanmax(finite))
    shown = np.nan_to_num(finite, nan=high)
    count = len(images)
    figure = new_figure(1.45 * count + 0.9, 3.6)
    axes = figure.subplots(2, count, squeeze=False)
    picture = None
    for i in range(count):
        tokens, patches = patch_ids[i].size, int(patch_ids[i].max()) + 1
        axes[0, i].imshow(images[i])
        picture = axes[1, i].imshow(shown[i], cmap="viridis", vmin=low, vmax=high)
        draw_patches(axes[1, i], patch_ids[i], width=1.3)
        axes[1, i].set_xlabel(f"{patches} patches\nT / M = {tokens / patches:.2f}")
        for row in (0, 1):
            axes[row, i].set_xticks([])
            axes[row, i].set_yticks([])
            for spine in axes[row, i].spines.values():
                spine.set_visible(False)
    if picture is not None:
        bar = figure.colorbar(picture, ax=list(axes[1]), label="entropy (nats)", pad=0.01)
        if threshold is not None and low < threshold < high:
            bar.ax.axhline(threshold, color="white", linewidth=3)
            bar.ax.axhline(threshold, color="black", linewidth=1.2)
            bar.ax.set_title("— $E_{Th}$", fontsize=8)
    return figure


def sample_columns(
    columns: Mapping[str, NDArray[np.uint8]], row_names: Sequence[str], side: float = THUMBNAIL
) -> Figure:
    """Images in named blocks of columns, one row per class; `ABREAST` blocks of one width stand side by side.

    Args:
        columns: title -> (rows, images per row, height, width, 3).
        row_names: one per row.
        side: inches of one image.
    """
    rows, blocks = len(row_names), list(columns.items())
    band = ABREAST if len({block.shape[1] for block in columns.values()}) == 1 else len(blocks)
    bands = [blocks[start : start + band] for start in range(0, len(blocks), band)]
    widths = [block.shape[1] for _, block in bands[0]]
    names = [textwrap.fill(_literal(name), _WRAPPED, max_lines=3, placeholder=" ...") for name in row_names]
    margin = max(0.8, 0.25 + 0.06 * max(len(line) for name in names for line in name.splitlines() or [""]))
    figure = new_figure(side * sum(widths) + 0.25 * len(widths) + margin, (side * rows + 0.4) * len(bands))
    grid = figure.subplots(len(bands), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
    for axis in grid.flat:
        axis.set_axis_off()
    for axes, shown in zip(grid, bands, strict=True):
        for axis, (title, block) in zip(axes, shown, strict=False):
            axis.set_axis_on()
            mosaic = np.concatenate([np.concatenate(list(row), axis=1) for row in block], axis=0)
            axis.imshow(mosaic, interpolation="nearest")
            axis.set_title(title, color=colour_of(title), fontweight="bold", fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        height = shown[0][1].shape[2]
        axes[0].set_yticks([height * (i + 0.5) for i in range(rows)], names, fontsize=7)
        axes[0].tick_params(length=0)
    return figure


def _literal(text: str) -> str:
    """The text as it is, for matplotlib, which sets what stands between two dollars as a formula."""
    return text.replace("$", r"\$")


def heat_maps(
    panels: Mapping[str, NDArray[np.floating]],
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    unranked: Collection[str] = (),
    tied: Mapping[str, NDArray[np.bool_]] | None = None,
    spreads: Mapping[str, float] | None = None,
) -> Figure:
    """One heat map a quantity over a two-dimensional grid, each with its own scale.

    The smallest cell is framed, as the best; those that cannot be told from it have a broken frame.

    Args:
        panels: title -> (rows, columns); NaN marks a missing cell.
        unranked: titles of panels in which no cell is better than another.
        tied: title -> (rows, columns), whether a cell cannot be told from the best.
        spreads: title -> standard deviation of a cell: colours span two of it or more, so that chance shows no pattern.
    """
    figure, axes = _panels(len(panels), 1.1, 2.0 + 0.75 * len(columns), 1.3 + 0.6 * len(rows))
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        low, high = _scale(values, (spreads or {}).get(title, 0.0))
        picture = axis.imshow(values, cmap="viridis_r", aspect="auto", vmin=low, vmax=high)
        figure.colorbar(picture, ax=axis, ticks=MaxNLocator(4), fraction=0.08, pad=0.03).outline.set_visible(False)
        for (i, j), value in np.ndenumerate(values):
            text = axis.text(
                j, i, "missing" if np.isnan(value) else f"{value:.4g}", ha="center", va="center", color="white"
            )
            text.set_path_effects([withStroke(linewidth=2, foreground="black")])
        if np.isfinite(values).any() and title not in unranked:
            best = np.unravel_index(np.nanargmin(values), values.shape)
            for i, j in [*np.argwhere((tied or {}).get(title, np.zeros_like(values, bool))), best]:
                line = "-" if (i, j) == best else "--"
                frame = (j - 0.45, i - 0.45), 0.9, 0.9
                axis.add_patch(Rectangle(*frame, fill=False, edgecolor=DPAR, linewidth=2.5, linestyle=line))
        axis.set_title(_literal(title))
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_xlabel(column_label)
        axis.set_ylabel(row_label)
        axis.tick_params(length=0)
    return figure


def _panels(
    count: int, margin: float, width: float, height: float, *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, `ABREAST` of them next to each other; sizes in inches, the margin around them."""
    lines = -(-count // ABREAST)
    figure = new_figure(margin + width * min(count, ABREAST), height * lines)
    axes = list(figure.subplots(lines, min(count, ABREAST), squeeze=False, sharey=sharey).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _scale(values: NDArray[np.floating], spread: float) -> tuple[float, float]:
    """Ends of a colour scale: the least and the largest value, or two spreads around their middle if that is more."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    middle, half = (finite.min() + finite.max()) / 2, max((finite.max() - finite.min()) / 2, spread)
    half = half or abs(middle) * 0.01 or 1.0  # one colour for equal values
    return float(middle - half), float(middle + half)


def error_bars(
    panels: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    names: Sequence[str],
    references: Mapping[str, float] | None = None,
) -> Figure:
    """One panel a quantity: a point with its spread for each named row, and a line for a reference.

    Args:
        panels: title -> (values, spreads), one a name.
    """
    figure, axes = _panels(len(panels), 1.6, 2.3, 1.1 + 0.32 * len(names), sharey=True)
    places = np.arange(len(names))
    for axis, (title, (values, spreads)) in zip(axes, panels.items(), strict=True):
        for place, name, value, spread in zip(places, names, values, spreads, strict=True):
            axis.errorbar(value, place, xerr=spread, fmt="o", color=colour_of(name), capsize=3)
        if references and title in references:
            axis.axvline(references[title], color=NEUTRAL, linestyle=":", linewidth=1.2)
        axis.set_title(_literal(title))
        axis.set_yticks(places, names)
        axis.xaxis.set_major_locator(MaxNLocator(4))  # more numbers would run into each other
        axis.margins(y=0.15)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    return figure


def metric_against_cost(points: Sequence[Mapping[str, Any]], metric: str, floor: float | None) -> Figure:
    """The metric against the cost of training, DPAR and LlamaGen (Figure 1b); a line joins the sizes of each.

    Args:
        points: each with `label`, `model`, `cost` (training GMACs per image), `value` and `spread`; may be empty.
        metric: name of the metric, for the axis.
        floor: the metric of real images against real images.
    """
    figure = new_figure(5.6, 3.8)
    axes = figure.subplots()
    points = sorted(points, key=lambda point: point["cost"])
    for colour in dict.fromkeys(colour_of(point["model"]) for point in points):
        family = [point for point in points if colour_of(point["model"]) == colour]
        axes.plot([p["cost"] for p in family], [p["value"] for p in family], color=colour, linewidth=1)
    for point in points:
        axes.errorbar(
            point["cost"], point["value"], yerr=point["spread"], fmt="o", color=colour_of(point["model"]), capsize=3
        )
        axes.annotate(
            point["label"], (point["cost"], point["value"]), xytext=(5, 4), textcoords="offset points", fontsize=7
        )
    if not points:
        nothing = "No table shows a model as it is described,\nfully trained and measured."
        axes.text(0.5, 0.5, nothing, transform=axes.transAxes, ha="center", va="center", color=NEUTRAL)
    if floor is not None:
        axes.axhline(floor, color=NEUTRAL, linestyle=":", linewidth=1.2)
        axes.annotate(
            "real against real",
            (0.99, floor),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
            color=NEUTRAL,
        )
    axes.set_xlabel("training cost per image (GMACs, forward and backward)")
    axes.set_ylabel(_literal(metric))
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    return figure


@dataclass(frozen=True)
class Panel:
    """One panel of `curves`.

    Attributes:
        x_label, y_label: of its axes.
        lines: name -> (x values, y values), one curve a model.
        spreads: name -> standard deviations of its y values, drawn as a band; NaN draws none.
        printed: name -> (x values, y values) that the paper prints, drawn as hollow points; given, even if empty, each
            value of a curve has a point.
    """

    x_label: str
    y_label: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    spreads: Mapping[str, Sequence[float]] = field(default_factory=dict)
    printed: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None


def curves(*rows: Sequence[Panel]) -> Figure:
    """Curves in panels: those of a row share the y axis, logarithmic over a wide range, and all share the models."""
    height, width = len(rows), len(rows[0])
    figure = new_figure(1.8 + 5.8 * width if width == 1 else 1.8 + 3.6 * width, 3.4 if height == 1 else 2.7 * height)
    grid = figure.subplots(height, width, squeeze=False, sharey="row")
    for panels, row in zip(rows, grid, strict=True):
        for panel, axes in zip(panels, row, strict=True):
            _draw_curves(axes, panel)
        row[0].set_ylabel(_literal(panels[0].y_label))
        heights = [y for panel in panels for _, values in panel.lines.values() for y in values]
        if heights and max(heights) > _WIDE * min(heights) > 0:  # the end of a long fall would lie on the axis
            row[0].set_yscale("log")
            row[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            row[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            row[0].yaxis.set_minor_formatter(NullFormatter())
    grid[0, -1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw_curves(axes: Axes, panel: Panel) -> None:
    families: dict[str, list[str]] = {}
    for name in panel.lines:
        families.setdefault(colour_of(name), []).append(name)
    for colour, names in families.items():
        for name, shade, (style, marker) in zip(names, _shades(colour, len(names)), cycle(_LINES), strict=False):
            label = name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}...{name[-_LONGEST // 2 :]}"
            x, y = (np.asarray(values, float) for values in panel.lines[name])
            axes.plot(
                x, y, linestyle=style, marker=marker, color=shade, label=label, linewidth=1.4, markersize=3.5,
                markevery=1 if panel.printed is not None else max(1, len(x) // 8),
            )  # fmt: skip
            if name in panel.spreads:
                spread = np.asarray(panel.spreads[name], float)
                axes.fill_between(x, y - spread, y + spread, color=shade, alpha=0.2, linewidth=0)
    for name, (x, y) in (panel.printed or {}).items():
        label = "the paper's" if name == next(iter(panel.printed or {})) else None
        axes.plot(x, y, "D", color=colour_of(name), markerfacecolor="none", markersize=5, label=label)
    axes.set_xlabel(panel.x_label)
    axes.grid(alpha=0.3)


def pareto(panels: Mapping[str, Sequence[tuple[str, float, float]]], metric: str) -> Figure:
    """The metric against a cost, a panel a cost: a line joins the cells that no other beats in both.

    Args:
        panels: name of the cost -> (name of the cell, cost, metric), smaller being better in both.
    """
    figure = new_figure(0.6 + 4.4 * len(panels), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (cost, points) in zip(axes, panels.items(), strict=True):
        front = pareto_front([(x, y) for _, x, y in points])
        axis.plot([points[i][1] for i in front], [points[i][2] for i in front], color=DPAR, linewidth=1.2, zorder=1)
        middle = (min(x for _, x, _ in points) + max(x for _, x, _ in points)) / 2
        for i, (name, x, y) in enumerate(points):
            axis.plot(x, y, "o", color=DPAR, markerfacecolor=DPAR if i in front else "white", markersize=5)
            side, place = ("right", (-5, 4)) if x > middle else ("left", (5, 4))
            axis.annotate(name, (x, y), xytext=place, textcoords="offset points", fontsize=7, ha=side)
        axis.set_xlabel(cost)
        axis.xaxis.set_major_locator(MaxNLocator(5))  # more numbers would run into each other
        axis.margins(x=0.3, y=0.15)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(_literal(metric))
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Pareto front of the (x, y), by rising x: no other is at most as large in both and smaller in one."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    front: list[int] = []
    for i in order:
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front
