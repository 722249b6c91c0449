"""The analysis of patches for people: tables with their conditions, and the figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpar.evaluation.patch_losses import PERCENTILES, REASONS
from dpar.report.figures import NEUTRAL, colour_of, new_figure
from dpar.report.tables import to_markdown


def tables(found: Mapping[str, Any]) -> str:
    """The tables of what analyse_patches found, as Markdown."""
    parts = [
        to_markdown(
            _groups(found["by_place"], found["models"], "Place in its patch", str), "Loss by place in a patch", []
        ),
        to_markdown(
            _groups(found["by_reason"], found["models"], "Why it begins a patch", REASONS.__getitem__),
            "Loss by what begins a patch",
            [],
        ),
        to_markdown(
            _groups(found["by_entropy"], found["models"], "Entropy, tenth", lambda n: str(n + 1)),
            "Loss by entropy",
            _notes(found),
        ),
        to_markdown(_counts(found), "Patches per image, real and drawn", _drawn_notes(found)),
    ]
    return "\n".join(parts)


def _groups(
    rows: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]], title: str, name: Any
) -> pd.DataFrame:
    shown = []
    for row in rows:
        cells = {title: name(row["group"]), "Tokens": f"{row['tokens']:.1%}"}
        if len({r["starts"] for r in rows} - {0, 1}):
            cells["Starts"] = f"{row['starts']:.1%}"
        cells["Entropy (nats)"] = "–" if row["entropy"] is None else f"{row['entropy']:.3f}"
        cells |= {f"Loss of {m['model']}": f"{loss:.3f}" for m, loss in zip(models, row["loss"], strict=True)}
        if "difference" in row:
            cells["Difference"] = f"{row['difference']:+.4f} ± {row['difference_se']:.4f}"
        shown.append(cells)
    return pd.DataFrame(shown)


def _counts(found: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for kind, counts in found["patches"].items():
        cells = {"Images": kind, "Number": f"{counts['images']:,}", "Mean": f"{counts['mean']:.1f}"}
        cells |= {f"{q} %": f"{counts[f'p{q}']}" for q in PERCENTILES}
        rows.append(cells | {"P_avg": f"{counts['mean_patch_length']:.3f}"})
    return pd.DataFrame(rows)


def _notes(found: Mapping[str, Any]) -> list[str]:
    rule, models = found["rule"], found["models"]
    notes = [
        f"{found['images']:,} held-out images of {found['length']} tokens; losses in nats per token, of networks in "
        "the precision of their training: "
        + ", ".join(f"{m['model']} {m['nll']:.4f} over all tokens" for m in models)
        + ".",
        f"E_Th {rule['threshold']:.4g} nats, P_max {rule['max_length'] or '–'}, rows "
        f"{'begin' if rule['row_boundary'] else 'do not begin'} patches. The first token of an image has no entropy.",
    ]
    if len(models) > 1:
        notes.append(
            f"Difference: {models[0]['model']} less {models[1]['model']}, at the same tokens, ± standard error over "
            "images; one training of each, so that it says nothing about how trainings differ."
        )
    return notes


def _drawn_notes(found: Mapping[str, Any]) -> list[str]:
    return [
        f"Largest difference of the two distribution functions: {found['drawn_distance']:.3f} (0: alike, 1: apart).",
        f"Drawn: samples `{found['samples']}`, guidance {found['cfg_scale']:g}.",
    ]


def figure(found: Mapping[str, Any]) -> Figure:
    """Loss by place and by entropy of each network, lengths of patches, and patches per image, real and drawn."""
    drawn = new_figure(13.2, 3.2)
    place, entropy, lengths, counts = drawn.subplots(1, 4)
    for number, model in enumerate(found["models"]):
        colour = colour_of(model["model"])
        rows = found["by_place"]
        place.plot([r["group"] for r in rows], [r["loss"][number] for r in rows], "o-", color=colour, markersize=4)
        rows = found["by_entropy"]
        entropy.plot([r["entropy"] for r in rows], [r["loss"][number] for r in rows], "o-", color=colour, markersize=4)
        place.plot([], [], "o-", color=colour, markersize=4, label=model["model"])
    place.set_xticks([r["group"] for r in found["by_place"]][:: 1 + len(found["by_place"]) // 8])
    _label(place, "token of its patch, from 0", "loss (nats per token)", "Loss by place in a patch")
    place.legend(fontsize=7, frameon=False)
    ends = [found["by_entropy"][i]["entropy"] for i in (0, -1)]
    entropy.plot(ends, ends, ":", color=NEUTRAL, linewidth=1.2)
    entropy.axvline(found["rule"]["threshold"], color=NEUTRAL, linewidth=1.2)
    _label(entropy, "entropy (nats), by tenths", "loss (nats per token)", "Loss by entropy; line: E_Th")
    shares = found["lengths"][1:]
    lengths.bar(range(1, len(shares) + 1), shares, color=colour_of("dpar"))
    _label(lengths, "tokens", "share of patches", "Lengths of patches, held-out images")
    for kind, colour in (("held-out", NEUTRAL), ("drawn", colour_of("dpar"))):
        values = found["distribution"][kind]
        heights = [(i + 1) / len(values) for i in range(len(values))]
        counts.step(values, heights, where="post", color=colour, label=kind)
    _label(counts, "patches per image", "share of images with at most as many", "Patches per image")
    counts.legend(fontsize=7, frameon=False)
    return drawn


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
