"""The card of an exported model: what it is, how it is used, what was measured about it and under which conditions."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dpar.data.classes import Classes
from dpar.report import tables

_NAMED = 100  # classes whose names stand on a card
_PATCHES = {None: "no patches", "dynamic": "patches that begin where the entropy model is uncertain"}


def model_card(
    name: str,
    described: Mapping[str, Any],
    *,
    parameters: int,
    side: int,
    measured: Mapping[str, Sequence[Mapping[str, Any]]],
    likelihood: Mapping[str, Any] | None,
    origin: Sequence[str],
    classes: Classes,
    credits: str | None,
    picture: str | None,
) -> str:
    """The card as Markdown, with the header that model hubs read.

    Args:
        described: the model folder's config.json.
        parameters: of the model alone.
        side: pixels per side of its images.
        measured: set of samples -> what compute_metrics wrote for each of its seeds; all drawn from this model.
        likelihood: what evaluate_likelihood wrote.
        origin: lines that say what it was made from.
        classes: that it draws.
        credits: whose images it was trained on, and their licence, as the experiment says.
        picture: the name of a file with samples.
    """
    model, made = described["model"], described["provenance"]
    kind = {"dpar": "DPAR", "llamagen": "LlamaGen"}[described["kind"]]
    rows, columns = model["grid"]
    strategy = (made.get("patchify") or {}).get("strategy")
    lines = ["---", "library_name: dpar", "tags: [dpar, image-generation]", "---", "", f"# {tables.plain(name)}", ""]
    lines += [
        f"{kind}, {parameters:,} parameters, {_PATCHES.get(strategy, f'{strategy} patches')}. It draws images of "
        f"{side} x {side} pixels from {rows} x {columns} tokens, of {model['num_classes']} classes.",
        "",
    ]
    lines += [f"![samples]({picture})", ""] if picture else []
    lines += _use(classes)
    lines += ["## Measured", ""]
    if likelihood:
        lines += [
            f"Held-out negative log-likelihood: {likelihood['nll']:.4f} nats per token over {likelihood['images']:,} "
            f"images ({likelihood['tokens']:,} tokens), in {likelihood['precision']}.",
            "",
        ]
    for cell, seeds in measured.items():
        lines += [_samples(cell, seeds)]
    if not (likelihood or measured):
        lines += ["Nothing: the results that this model lies in hold no measurement of these weights.", ""]
    lines += ["## Made from", "", *(f"- {tables.plain(line)}" for line in origin), ""]
    lines += ["## Images and licence", "", tables.plain(credits), ""] if credits else []
    # on one line each, none can end the block
    settings = (tables.plain(f"{key}: {value}") for key, value in {**model, **made}.items() if key != "classes")
    lines += ["## Settings", "", "```", *settings, "```", ""]
    return "\n".join(lines)


def _use(classes: Classes) -> list[str]:
    """The lines that show how the model is used, and the names of its classes."""
    lines = ["## Use", "", "All networks are in this folder, FOLDER below; nothing is downloaded.", "", "```"]
    example = shlex.quote(classes.example(2))
    lines += [f"dpar sample --checkpoint FOLDER --labels {example} --n 16 --out grid.png", "```", "", "```python"]
    lines += ["import dpar", "", 'generator = dpar.Generator.from_pretrained("FOLDER")']
    lines += ["images = generator([0, 1], seed=0, cfg_scale=2.0)  # uint8, N x side x side x 3", "```", ""]
    if classes.names is not None:
        numbered = [tables.plain(f"{label} {classes.title(label)}") for label in range(min(classes.count, _NAMED))]
        more = [f"... ({classes.count:,} in all, in config.json)"] if classes.count > _NAMED else []
        lines += ["## Classes", "", "```", *numbered, *more, "```", ""]
    return lines


def _samples(cell: str, seeds: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of one set of samples with its conditions."""
    first = seeds[0]
    stated = first["conditions"]
    drawn, sampling = stated["drawn"], stated["drawn"]["sampling"]
    row = {"threshold": drawn["threshold"], "max_length": (drawn["patchify"] or {}).get("max_length")}
    for metric in tables.METRICS:
        row |= tables.mean_and_sd(metric, [seeds])
    row |= {"cfg_scale": sampling["cfg_scale"], "images": stated["samples"]}
    frame = pd.DataFrame([row | {"seeds": len(seeds)}]).astype({"max_length": "Int64"}).dropna(axis="columns")
    settings = ", ".join(f"{key} {value}" for key, value in sampling.items() if key not in ("num_images", "shards"))
    notes = [
        f"{first['metric']}: {stated['samples']} samples against {stated['reference_samples']} images of "
        f"`{stated['reference']}`, feature network `{stated['extractor']}` (`{str(stated['extractor_sha256'])[:12]}`), "
        f"at {stated['resolution']} pixels.",
        f"Drawn at step {drawn['step']}, seeds {', '.join(str(m['conditions']['drawn']['seed']) for m in seeds)}, with "
        f"{settings}.",
        "Values are mean ± standard deviation over sampling seeds.",
        *(f"Warning: {text}" for text in dict.fromkeys(text for m in seeds for text in m["warnings"])),
    ]
    if not first["comparable_to_published"]:
        notes.append(f"Not comparable to published numbers: {first['comparable_reason']}")
    title = f"Samples `{cell}`"
    return tables.to_markdown(tables.readable(frame, first["metric"]), title, notes).replace("## ", "### ", 1)
