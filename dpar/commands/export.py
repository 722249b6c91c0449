"""Writes a trained model as one folder that draws anywhere: weights, configuration, its other networks, a card."""

import argparse
import math
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from dpar import files
from dpar.data.classes import Classes
from dpar.errors import InputError
from dpar.experiment.loading import load_experiment
from dpar.generator import Generator, find_network
from dpar.mirror.models import model_of_run
from dpar.mirror.store import URI_VARIABLE, find_store
from dpar.report.card import model_card
from dpar.report.measured import StatedLikelihood, read_measured, read_metrics
from dpar.tracking.hashes import read_artefact
from dpar.tracking.ledger import Ledger
from dpar.tracking.lineage import results_of, sources
from dpar.tracking.makers import check_recorded, recorded_json
from dpar.tracking.places import results_folder
from dpar.tracking.settings import check_settings
from dpar.tracking.spool import CONFIG as SETTINGS
from dpar.weights import (
    CONFIG,
    WEIGHTS,
    WITH_SEALED_CONFIG,
    check_finite,
    model_config,
    seal_export,
    verify_model,
    write_tensors,
)
from dpar.workflow import jobs
from dpar.workflow.options import Parser

CARD, PICTURE = "README.md", "samples.png"


def parser() -> argparse.ArgumentParser:
    """The options of `dpar export`."""
    options = Parser(prog="dpar export", description=__doc__)
    options.add_argument("what", metavar="RUN|FOLDER", help="a run's id in the dashboard, or a model folder")
    options.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    options.add_argument("--half", action="store_true", help="store the weights in half precision (float16)")
    options.add_argument("--results", type=Path, help="for a run: the results folder (default: the latest)")
    options.add_argument("--uri", help=f"for a run: MLflow store (default: ${URI_VARIABLE}, or the results folder's)")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the folder, loads it once, and says how to go on.

    Raises:
        InputError: there is no such model, it cannot draw, a network is missing or another, OUT is there already, or
            there is no space.
    """
    args = parser().parse_args(argv)
    folder = Path(args.what)
    if not (folder / CONFIG).exists():
        if folder.exists():
            raise InputError(f"{folder} is no model folder: it has no {CONFIG}; give one such as models/dpar/step400")
        if not re.fullmatch("[0-9a-f]{32}", args.what):
            raise InputError(
                f"there is no folder {args.what}, and a run's id is 32 digits from 0 to f, as its page's address ends: "
                "give a folder such as results/demo/models/dpar/step400, or an id"
            )
        folder = model_of_run(find_store(results_folder(args.results), args.uri), args.what)
    if args.out.exists():
        raise InputError(f"{args.out} is there already; give a new folder, or delete that one")
    aside = args.out.absolute().with_name(f".{args.out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        export(folder, aside, half=args.half)
        os.rename(aside, args.out)
    except OSError as error:
        raise InputError(f"cannot write {args.out}: {error.strerror}; free some space, or give another place") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    example = shlex.quote(Classes.of_model(args.out, model_config(args.out)).example(1))
    total = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(
        f"{args.out}: {folder}, {total:,} bytes\n"
        f"next: dpar sample --checkpoint {shlex.quote(str(args.out))} --labels {example} --n 8 --out grid.png, "
        f"or read {args.out / CARD}"
    )


def export(folder: Path, out: Path, *, half: bool = False) -> None:
    """Copies the model in `folder` and the networks it draws with to `out`, and writes the card.

    Nothing is made before all that is copied has been found and loaded.

    Args:
        folder: of a DPAR or a baseline.
        out: the folder to make.
        half: round the weights to float16, half the size; whatever loads them computes in its own precision.

    Raises:
        InputError: what `folder` holds cannot draw, a network is missing, damaged or another, or its weights are too
            large for float16.
    """
    described = model_config(folder)
    if described["kind"] not in ("dpar", "llamagen") or described["model"]["num_classes"] is None:
        raise InputError(f"{folder} holds a {described['kind']} that draws no classes; give a DPAR or a baseline")
    generator = Generator.from_pretrained(folder, device="cpu")  # which checks digests, and that they belong together
    with safe_open(folder / WEIGHTS, "numpy") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    facts, copies = _facts(folder, described)
    needed = ["tokenizer"] + ([] if generator.networks.entropy_model is None else ["entropy_model"])
    rounded: dict[str, str] = {}
    for source, target in [*((find_network(folder, name), out / name) for name in needed), (folder, out)]:
        target.mkdir(parents=True, exist_ok=True)
        if half:
            _round(source, target, rounded)
        else:
            for name in (WEIGHTS, CONFIG):
                shutil.copyfile(source / name, target / name)
            files.reseal(target / CONFIG, lost=True)  # older ones carry no seal
        verify_model(target)
    for name, path in copies.items():
        shutil.copyfile(path, out / name)
    stored = _with_names(out, generator.classes)
    measured = described["provenance"].get("rounded_from", described["sha256"])
    facts["origin"].insert(0, _weights(stored["sha256"], measured))
    card = model_card(
        f"{folder.parent.name}/{folder.name}",
        stored,
        parameters=parameters,
        side=generator.side,
        picture=PICTURE if PICTURE in copies else None,
        classes=generator.classes,
        **facts,
    )
    if (folder / CARD).is_file() and not (facts["measured"] or facts["likelihood"]):  # an export
        card = _with_records(card, folder / CARD)
    files.write_text(out / CARD, card)
    seal_export(out)


def _with_names(out: Path, classes: Classes) -> dict[str, Any]:
    """The config.json of an exported model, with the names of its classes also where only its results had them."""
    stored = model_config(out)
    if classes.names is not None and "classes" not in stored["provenance"]:
        stored["provenance"]["classes"] = list(classes.names)
        files.write_json(out / CONFIG, stored)
    return stored


def _round(source: Path, target: Path, rounded: dict[str, str]) -> None:
    """Writes the network in `source` to `target` in half precision, as made from the rounded copies of the others.

    Args:
        source: a model folder.
        target: a folder.
        rounded: digest of each network before it -> digest of its rounded copy; this one's is added.

    Raises:
        InputError: a weight is too large.
    """
    described = model_config(source)
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(source / WEIGHTS).items()}
    check_finite(tensors, f"{source}, in half precision,", "they are too large for it; export without --half")
    write_tensors(target / WEIGHTS, tensors, WITH_SEALED_CONFIG)
    before, now = described["sha256"], files.sha256_file(target / WEIGHTS)
    rounded[before] = now
    origin = {
        key: rounded.get(value, value) if isinstance(value, str) else value
        for key, value in described["provenance"].items()
    }
    origin |= {"rounded_from": described["provenance"].get("rounded_from", before)}  # those that were trained
    files.write_json(target / CONFIG, described | {"sha256": now, "provenance": origin})


def _weights(stored: str, measured: str) -> str:
    """The card's line on the file of weights, and on those that were measured if they are others."""
    line = f"weights: `{WEIGHTS}`, sha256 `{stored}`"
    return line if stored == measured else f"{line}, rounded to half precision from `{measured}`, which were measured"


def _with_records(card: str, before: Path) -> str:
    """The card of an export of an export, with what the card before says was measured and of what it was made."""
    old, parts = (
        re.split("^(?=## )", text, flags=re.MULTILINE) for text in (before.read_text("utf-8", "replace"), card)
    )
    known = {part.partition("\n")[0]: part for part in old}
    for i, part in enumerate(parts):
        title = part.partition("\n")[0]
        if title in known and title in ("## Measured", "## Made from"):
            weights = next((line for line in part.splitlines() if line.startswith("- weights: ")), "")
            parts[i] = re.sub("^- weights: .*$", lambda _: weights, known[title], flags=re.MULTILINE)  # noqa: B023
    return "".join(parts)


def _facts(folder: Path, described: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Provenance of these weights in the results around a model, found by digest; and the files to export with it."""
    weights = described["sha256"]
    measured: dict[str, list[dict[str, Any]]] = {}
    facts: dict[str, Any] = {"measured": measured, "likelihood": None, "origin": [], "credits": None}
    copies: dict[str, Path] = {}
    try:
        results = results_of(folder / WEIGHTS)
    except InputError:  # published weights, or an export that is exported again
        facts["origin"].append("no records of a run lie next to the folder that was exported")
        if (folder / SETTINGS).is_file():
            facts["credits"] = load_experiment(folder / SETTINGS).images.credits
        return facts, {name: folder / name for name in (PICTURE, SETTINGS) if (folder / name).is_file()}
    if (results / SETTINGS).is_file():
        check_settings(results / SETTINGS, by_job=False)
        facts["credits"] = load_experiment(results / SETTINGS).images.credits
    for path in sorted(results.glob("metrics/*/seed*.json")):
        found = read_metrics(path, lambda path: recorded_json(*jobs.metrics([path])))
        drawn = found["conditions"].get("drawn") or {}
        if (drawn.get("networks") or {}).get("model") == weights:
            measured.setdefault(path.parent.name, []).append(found)
            for picture in sorted(results.glob(f"samples/{path.parent.name}/{path.stem}/*.png"))[:1]:
                copies.setdefault(PICTURE, picture)
    for path in results.glob("likelihood/*/*.json"):
        found = read_measured(
            path, StatedLikelihood, lambda path: recorded_json(*jobs.by_state("evaluate_likelihood", [path]))
        )
        if found.get("model") == weights:
            facts["likelihood"] = found
    check_recorded(*jobs.samples(copies.values()))
    ledger = Ledger(results)
    makers = ledger.producers(read_artefact(folder / WEIGHTS, results))
    facts["origin"] += sources(results, ledger, makers).facts()
    if makers and (settings := makers[-1].spool / SETTINGS).is_file():
        copies[SETTINGS] = settings
    return facts, copies
