"""Looks at a folder of images and writes an experiment that fits them and this machine, for `dpar run`."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dpar.data.sources.source import enumerated
from dpar.data.survey import Survey, survey
from dpar.errors import InputError, shown
from dpar.experiment.composing import CHECKOUT
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import Experiment
from dpar.files import write_text
from dpar.workflow.options import Parser
from dpar.workflow.sizing import SIZES, Choice, choose, fitting_size

MOST_LINES = 25


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    options = Parser(prog="dpar init", description=__doc__)
    options.add_argument("folder", type=Path, metavar="FOLDER", help="of images: one sub-folder per class, or files")
    options.add_argument("--name", help="of the experiment and its results (default: the folder's)")
    options.add_argument(
        "--size", choices=SIZES, help="of the networks (default: base on a GPU, else tiny); see config/README.md"
    )
    options.add_argument(
        "--output", type=Path, metavar="FILE", help="what to write (default: config/NAME.yaml in the checkout)"
    )
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the experiment and says what was chosen.

    Raises:
        InputError: no images that an experiment could read, a name that none can have, or a file that is there.
    """
    args = parser().parse_args(argv)
    name = args.name or named_after(args.folder)
    path = args.output or CHECKOUT / "config" / f"{name}.yaml"
    if path.exists():
        raise InputError(f"{path} is there already: give another --name or --output, or remove it")
    found = survey(args.folder)
    choice = choose(found, name, args.size or fitting_size())
    write_text(path, written(choice, found))
    try:
        experiment = load_experiment(path)
    except InputError:
        path.unlink()
        raise
    print("\n".join([*looked(found), *chosen(experiment, choice), *durations(experiment, found)]))
    place = path.resolve().relative_to(Path.cwd()) if path.resolve().is_relative_to(Path.cwd()) else path
    print(f"\nwrote {place}; change what you like in it, then\n\n  dpar run --config {place}\n")


def named_after(folder: Path) -> str:
    """A name that an experiment can have, after the folder's."""
    return re.sub(r"[^a-z0-9]+", "_", folder.expanduser().resolve().name.lower()).strip("_") or "images"


def written(choice: Choice, found: Survey) -> str:
    """The file: at most `MOST_LINES` lines."""
    lines = [
        f"# yaml-language-server: $schema={CHECKOUT / 'config' / 'schema.json'}",
        f"# Made by `dpar init` for {found.count + found.val_count} images of {len(found.images)} classes; "
        "config/README.md says what may stand here.",
        f"extends: config/base/{choice.size}.yaml  # sizes and all that is not said here; others: "
        f"{', '.join(size for size in SIZES if size != choice.size)}",
        *_block(choice.settings, choice.why),
    ]
    assert len(lines) <= MOST_LINES, len(lines)
    return "\n".join(lines) + "\n"


def _block(settings: Mapping[str, Any], why: Mapping[str, str]) -> Iterator[str]:
    for group, values in settings.items():
        if group == "images":
            yield "images:"
            for key, value in values.items():
                yield f"  {key}: {_flow(value)}{_comment(why.get(f'images.{key}'))}"
        else:
            yield f"{group}: {_flow(values)}{_comment(why.get(group))}"


def _comment(words: str | None) -> str:
    return f"  # {' '.join(shown(words).split())}" if words else ""


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
        .removesuffix("\n...\n")
        .strip()
    )


def looked(found: Survey) -> Iterator[str]:
    """The contents of the folder, line by line."""
    each = sorted(n for n in found.images if n)
    names = [shown(str(name)) for name in found.classes if name is not None]
    yield (
        f"images    {found.count:,} in {len(each)} classes of {each[0]:,} to {each[-1]:,}"
        + (f" ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})" if names else "")
        + (f", and {found.val_count:,} held out" if found.val else "")
    )
    if found.unused:
        kept = Path(found.val).name if found.val else "nothing"
        yield f"          not used: {enumerated(sorted(found.unused))}; {kept} is held out, see images.train and .val"
    if found.below:
        yield (
            f"          {found.below:,} lie in folders within these, which count as no classes: if they are the "
            "classes, give the folder that holds them"
        )
    small, large = ("{} x {}".format(*size) for size in (found.smallest, found.largest))
    yield f"sizes     {small} to {large} pixels, by {found.read:,} of them"
    if found.turned:
        yield f"          {found.turned:,} are turned or mirrored: EXIF orientation is ignored; turn the pixels first"
    if found.transparent:
        yield f"          {found.transparent:,} are transparent: hidden colours are taken; save as RGB to choose them"
    for name in found.unreadable[:5]:
        yield f"          cannot be read: {name}"
    if len(found.unreadable) > 5:
        yield f"          and {len(found.unreadable) - 5} more"


def chosen(experiment: Experiment, choice: Choice) -> Iterator[str]:
    """The choices made for them, line by line."""
    rows, columns = experiment.grid
    images, lengths = experiment.images, (experiment.entropy_model.training, experiment.training)
    yield f"size      {choice.size}: " + ", ".join(
        f"{name} of width {model.sizes['width']}" for name, model in experiment.models.items()
    )
    codes = experiment.tokenizer.vocab_size
    yield f"tokens    {images.resolution} pixels as {rows} x {columns} tokens of {codes} codes"
    if images.held_out is not None:
        yield f"held out  {choice.why['images.held_out'].split(': ')[1]} ({images.held_out:.0%} of each class, by name)"
    steps = [f"{t.length} {t.unit}s in batches of {t.batch_size}" for t in lengths if t is not None]
    yield f"training  {'; '.join(dict.fromkeys(steps))}; {experiment.codes.train_shards} shards of codes"
    mixed = (
        ", of each class as often as the training images have it" if experiment.sampling.labels == "training" else ""
    )
    yield f"samples   {experiment.sampling.num_images} of each model{mixed}"


def durations(experiment: Experiment, found: Survey) -> Iterator[str]:
    """The time that it will take, as far as that can be measured here."""
    from dpar.workflow.planning import Data, jobs
    from dpar.workflow.speed import first_picture, hours, timed_rates

    if experiment.tokenizer.weights:
        yield "time      `dpar plan` says what it costs on the GPUs that you have"
        return
    held = found.val_count or round(found.count * (experiment.images.held_out or 0))
    data, rates = Data(found.count - (0 if found.val else held), held, {}), timed_rates(experiment)
    first, whole = first_picture(experiment, data), jobs(experiment, "report", data)
    until = [hours(first, rates, processes=12), hours(whole, rates, processes=40)]
    yield f"time      about {duration(until[0])} to the first samples, {duration(until[1])} for all (a step was timed)"


def duration(hours: float) -> str:
    """Hours for people."""
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
