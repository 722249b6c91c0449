"""Says what the tables of an experiment cost before anybody spends it: GPU-hours, time on a cluster, storage.

Trainings are counted up to the milestone that a table needs, a cell that stands in several tables once. Operations are
counted (`dpar info`); the rates at which a device does them are assumed, or measured with --measured. Numbers of images
and patches are taken from measured results only as far as they are those of this experiment.
"""

import argparse
import json
import statistics
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from dpar.errors import InputError
from dpar.evaluation import cost
from dpar.evaluation.roofline import CARDS
from dpar.experiment.cells import model_cells, sample_cells
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import Experiment, gate_folder
from dpar.files import read_json_lines
from dpar.model import flops
from dpar.paper import IMAGENET_IMAGES
from dpar.report.measured import Steps, read_measured
from dpar.report.targets import COMPUTED, PAPER_TARGETS, refusal, targets
from dpar.tracking.ledger import read_events
from dpar.tracking.makers import check_recorded, recorded_json
from dpar.tracking.settings import check_settings
from dpar.train.checkpoint import saved_step
from dpar.workflow.jobs import histories, patch_counts
from dpar.workflow.jobs import index as images_of
from dpar.workflow.options import (
    COUNT,
    LIMIT,
    SHARE,
    Parser,
    add_directory,
    add_experiment,
    add_target,
    read_experiment,
)
from dpar.workflow.planning import SHORTEST_KERNEL, Data, JobCost, Key, Rates, jobs

PLACING = ("images", "tokenizer", "entropy_model", "patchify")  # settings that decide how many patches an image has
STAGES = {
    "preparation": ("encode_images", "train_tokenizer", "train_entropy_model", "score_entropies"),
    "training": ("train_model",),
    "sampling": ("sample_images", "pixels"),
    "measuring": ("extract_features", "linear_probe"),
}


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar plan", description=__doc__)
    add_experiment(flags)
    add_target(flags)
    flags.add_argument("--gpus", type=COUNT, default=8, help="that work at the same time (default: 8)")
    flags.add_argument("--gpu", choices=CARDS, default="A100", help="default: A100")
    flags.add_argument(
        "--mfu", type=SHARE, default=0.4, help="share of the card's bfloat16 peak in training (default: 0.4)"
    )
    flags.add_argument(
        "--sampling-mfu",
        type=SHARE,
        help="the same in sampling, in place of the card's roofline (`dpar bench roofline`), which is the default",
    )
    flags.add_argument(
        "--float32-mfu", type=SHARE, default=0.5,
        help="share of its float32 peak in encoding and scoring (default: 0.5)",
    )  # fmt: skip
    flags.add_argument(
        "--images", type=COUNT,
        help="training images (default: those that --measured indexed, that are generated, or of ImageNet)",
    )  # fmt: skip
    flags.add_argument(
        "--measured", type=Path, metavar="RESULTS",
        help="results of an experiment on the same kind of device: its speeds in place of assumed ones, and its images "
        "and patches where they are this experiment's",
    )  # fmt: skip
    flags.add_argument("--price", type=LIMIT, metavar="P", help="of a GPU-hour, in any currency: the bill in money too")
    flags.add_argument(
        "--left",
        action="store_true",
        help="count only what is not there yet below results/NAME, trainings from their last checkpoint on",
    )
    add_directory(flags)
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the bill.

    Raises:
        InputError: the experiment is not valid, a target is none of it, or a number is missing.
    """
    args = parser().parse_args(argv)
    experiment, _ = read_experiment(args)
    for name in args.target or ():
        if name not in targets(experiment):
            raise InputError(refusal(name, experiment, args.config.parent, f"--config {args.config.parent}"))
    (data, taken), (rates, source) = known_data(experiment, args), known_rates(args)
    names = args.target or default_targets(experiment)
    needed = {name: jobs(experiment, name, data) for name in names}
    if args.left:
        results = args.directory / "results" / experiment.name
        needed = {name: dict(still_to_do(wanted, results, experiment, data)) for name, wanted in needed.items()}
    found = bill(needed, rates, args.gpus, () if args.target else experiment.requested_tables)
    found |= {"experiment": experiment.name, "gpus": args.gpus, "rates": source, "images": [data.train, data.val]}
    found["measured"] = taken
    found["price"] = args.price
    print(json.dumps(found, indent=2) if args.json else text(found))


def still_to_do(
    wanted: dict[Key, JobCost], results: Path, experiment: Experiment, data: Data
) -> Iterator[tuple[Key, JobCost]]:
    """The jobs whose outputs are not there, each training from its last checkpoint on."""
    for key, job in wanted.items():
        made = output_of(key)
        if made is None or not any(results.glob(made)):
            yield key, replace(job, macs=job.macs * share_left(key, results, experiment, data))


def share_left(key: Key, results: Path, experiment: Experiment, data: Data) -> float:
    """The share of a training, or of a piece of it, that comes after the last checkpoint of its state; else all."""
    name, *part = key
    if name == "train_model":
        model, state = model_cells(experiment)[part[0]], f"models/{part[0]}"
        training, place = model.training, model.milestones.index(part[1])
        before = (0, *(int(milestone.removeprefix(training.unit)) for milestone in model.milestones))
        first, last = before[place], before[place + 1]
    elif name == "train_tokenizer":
        state, training = "tokenizer", experiment.tokenizer.training
    elif name == "train_entropy_model":
        state = gate_folder(part[0] if part else None)
        training = experiment.network(state).training
    else:
        return 1.0
    step = saved_step(results / "state" / state)
    if training is None or step is None:
        return 1.0
    if name != "train_model":
        first, last = 0, training.steps or training.epochs or 0
    begin, end = (length * (training.batch_size if training.steps else data.train) for length in (first, last))
    return min(1.0, max(0.0, (end - step * training.batch_size) / (end - begin)))


def output_of(key: Key) -> str | None:
    """A pattern of the last output of a job, below the results; None where that is not one file."""
    name, *part = key
    return {
        "train_tokenizer": "tokenizer/model.safetensors",
        "encode_images": "codes/val/manifest.json",
        "score_entropies": "scored/val/manifest.json",
        "train_entropy_model": f"gates/{part[0]}/model.safetensors" if part else "entropy_model/model.safetensors",
        "train_model": f"models/{'/'.join(part)}/model.safetensors",
        "sample_images": f"samples/{part[0]}/seed{part[-1]}/*.npz" if part else None,
        "pixels": f"samples/{part[0]}/seed{part[-1]}/*.npz" if part else None,
        "extract_features": f"features/{part[0]}/seed{part[-1]}.npz" if part else None,
        "linear_probe": f"linear_probe/{'/'.join(part)}.json",
    }.get(name)


def default_targets(experiment: Experiment) -> list[str]:
    """The paper's tables and figures in this experiment by number, then its own tables, those on request last."""
    made = targets(experiment)
    own = [*experiment.shown_tables, *experiment.figures, *experiment.requested_tables]
    standing = {n for n, table in experiment.tables.items() if table.paper}
    return [n for n in PAPER_TARGETS if n in made and n not in COMPUTED] + [
        n for n in own if n not in {*standing, *PAPER_TARGETS}
    ]


def bill(needed: dict[str, dict[Key, JobCost]], rates: Rates, gpus: int, apart: Container[str] = ()) -> dict[str, Any]:
    """Cost of each target alone and beyond those before it; the total; and each training with its targets.

    Args:
        needed: the jobs of each target.
        apart: targets that are made on request alone, the last ones, which the total leaves out.
    """
    paid: dict[Key, JobCost] = {}
    lines = []
    for name, wanted in needed.items():
        new = {key: job for key, job in wanted.items() if key not in paid}
        lines.append(
            {
                "target": name,
                "on_request": name in apart,
                "alone": amounts(wanted, rates, gpus),
                "beyond_those_above": amounts(new, rates, gpus),
            }
        )
        paid |= new
    pieces: list[dict[str, Any]] = []
    for key, job in paid.items():
        if key[0] == "train_model":
            users = [name for name, wanted in needed.items() if key in wanted]
            if pieces and (pieces[-1]["model"], pieces[-1]["targets"]) == (key[1], users):
                pieces[-1] |= {"to": key[2], "gpu_hours": pieces[-1]["gpu_hours"] + rates.hours([job])}
            else:
                pieces.append({"model": key[1], "to": key[2], "gpu_hours": rates.hours([job]), "targets": users})
    papers = {key: job for name in needed if name in PAPER_TARGETS for key, job in needed[name].items()}
    whole = {key: job for name in needed if name not in apart for key, job in needed[name].items()}
    return {
        "targets": lines,
        "paper": amounts(papers, rates, gpus),
        "whole": amounts(whole, rates, gpus),
        "trainings": pieces,
    }


def amounts(wanted: dict[Key, JobCost], rates: Rates, gpus: int) -> dict[str, float]:
    """GPU-hours in all and by kind of stage, days of `gpus` devices, and gigabytes on disk."""
    hours = {
        stage: rates.hours(job for key, job in wanted.items() if key[0] in rules) for stage, rules in STAGES.items()
    }
    total = sum(hours.values())
    size = sum(job.bytes for job in wanted.values()) / 1e9
    return {"gpu_hours": total, **hours, "days": total / gpus / 24, "gigabytes": size}


def text(found: dict[str, Any]) -> str:
    """The bill for people."""
    head = ("target", "alone", "new", "of which preparation", "training", "sampling", "measuring", "days", "new GB")
    widths = [max(12, len(word) + 2) for word in head]

    def line(cells: Sequence[str]) -> str:
        return cells[0].ljust(24) + "".join(
            cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)
        )

    def row(name: str, alone: float, new: dict[str, float]) -> str:
        hours = [_hours(hours) for hours in (alone, *(new[k] for k in ("gpu_hours", *STAGES)))]
        return line([name, *hours, f"{new['days']:.2f}", f"{new['gigabytes']:,.0f}"])

    apart = itemgetter("on_request")
    whole = found["whole"]
    lines = [
        f"{found['experiment']}: {found['images'][0]:,} training images, {found['gpus']} devices; {found['rates']}",
        *([found["measured"]] if found["measured"] else []),
        "Hours of one device for each target alone, and what is new of it after those above; days of all together",
        "",
        line(head),
        *(row(t["target"], t["alone"]["gpu_hours"], t["beyond_those_above"]) for t in found["targets"] if not apart(t)),
        row("the paper's together", found["paper"]["gpu_hours"], found["paper"]),
        row("all together", whole["gpu_hours"], whole),
        *(row(t["target"], t["alone"]["gpu_hours"], t["beyond_those_above"]) for t in found["targets"] if apart(t)),
        *["  (after the total: made only when they are named)"] * any(map(apart, found["targets"])),
        "",
        "Trainings, each once; a longer one goes on from the shorter",
    ]
    for piece in found["trainings"]:
        name = f"{piece['model']} to {piece['to']}"
        lines.append(f"{name:<48}{_hours(piece['gpu_hours']):>9} h   {', '.join(piece['targets'])}")
    if found["price"] is not None:
        money = found["price"] * whole["gpu_hours"]
        lines += ["", f"At {found['price']:g} per GPU-hour: {money:,.0f} for all together"]
    lines += [
        "",
        "Left out: validation during training (on ImageNet 1.3 % of it), the tokenizer's reconstructions (there about",
        "an hour), what takes minutes (indices, likelihoods, comparisons of gates, metrics, tables, pictures), and",
        "what several devices lose to each other.",
    ]
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.1 or hours == 0 else f"{hours:.1g}"


def known_data(experiment: Experiment, args: argparse.Namespace) -> tuple[Data, str | None]:
    """The number of images, the patches of each model where they were counted, and what of it was measured.

    Raises:
        InputError: nothing says how many images there are.
    """
    generated, val = experiment.images.generated, experiment.images.max_val
    measured, counts, taken = counted(experiment, args.measured) if args.measured else (None, {}, None)
    if args.images:
        images = args.images, val or (IMAGENET_IMAGES[1] if args.images >= IMAGENET_IMAGES[0] else args.images // 10)
    elif measured is not None:
        images = measured
    elif generated is not None:
        images = generated.train, generated.val
    elif experiment.images.num_classes == 1000:
        images = IMAGENET_IMAGES
    else:
        raise InputError(
            f"how many training images {experiment.name} has is not in its file; say it with --images, or "
            "name results of it, which have counted them, with --measured"
        )
    return Data(*images, counts), taken


def counted(experiment: Experiment, results: Path) -> tuple[tuple[int, int] | None, dict[str, float], str]:
    """Images for training and held out, patches by model, as counted in `results`, and a sentence on what was taken.

    What was counted in an experiment with other images, or with patches placed otherwise, says nothing of this one. An
    experiment of the same name may have its images elsewhere.
    """
    before, images, patches = experiment_of(results), None, {}
    if before.name == experiment.name:
        elsewhere = {"train": experiment.images.train, "val": experiment.images.val}
        before = before.model_copy(update={"images": before.images.model_copy(update=elsewhere)})
    other = [group for group in PLACING if getattr(before, group) != getattr(experiment, group)]
    index = {split: results / "index" / f"{split}.json" for split in ("train", "val")}
    taken = ["speeds"]
    if "images" not in other and all(path.is_file() for path in index.values()):
        train, held_out = (int(recorded_json(*images_of(*named))["count"]) for named in index.items())
        images = train, held_out
        taken.append("numbers of images")
    if not other and (results / "patch_counts.json").is_file():
        patches = patches_counted(results)
        taken.append("patches")
    why = f"; {experiment.name} has other settings of {', '.join(other)}" if other else ""
    return images, patches, f"Taken from {results}: {', '.join(taken)}{why}"


def experiment_of(results: Path) -> Experiment:
    """The experiment of a results folder.

    Raises:
        InputError: it is missing, was changed, or is another's.
    """
    check_settings(results / "experiment.json", by_job=False)
    return load_experiment(results / "experiment.json")


def patches_counted(results: Path) -> dict[str, float]:
    """Mean patches per image of each model whose patches were counted in `results`.

    Raises:
        InputError: the file is missing or holds no counts.
    """
    path = results / "patch_counts.json"
    found = read_measured(path, Steps, lambda path: recorded_json(*patch_counts([path])))
    return {slug: float(cell["steps"]) for slug, cell in found["cells"].items()}


def known_rates(args: argparse.Namespace) -> tuple[Rates, str]:
    """The rates, measured as far as there are measurements, and what they rest on.

    Raises:
        InputError: --measured names results without a finished training.
    """
    card = CARDS[args.gpu]
    peak, slow = 1e12 * card.bfloat16, 1e12 * card.float32 * args.float32_mfu
    if args.measured is None:
        sampling, how = replace(card, shortest_kernel=SHORTEST_KERNEL), "by its roofline"
        if args.sampling_mfu is not None:
            sampling, how = peak * args.sampling_mfu, f"{args.sampling_mfu:.0%}"
        stated = f"assumed: {args.gpu}, {args.mfu:.0%} of {peak / 1e12:.0f} TFLOP/s in training"
        stated += f", sampling {how}, {slow / 1e12:.1f} TFLOP/s in float32"
        return Rates(peak * args.mfu, slow, sampling), stated
    before = experiment_of(args.measured)
    training = list(measured_training(before, args.measured))
    sampling = list(measured_sampling(before, args.measured))
    if not training or not sampling:
        raise InputError(
            f"{args.measured} has no finished training with samples whose patches were counted; leave --measured away"
        )
    rates = statistics.median(training), statistics.median(sampling)
    stated = (
        f"measured in {args.measured}: {rates[0] / 1e9:,.1f} GFLOP/s in training, {rates[1] / 1e9:,.1f} in sampling"
    )
    return Rates(rates[0], rates[1], rates[1]), f"{stated}, and in encoding and scoring as in sampling"


def measured_training(experiment: Experiment, results: Path) -> Iterator[float]:
    """Operations per second of one device, one number per finished piece of training."""
    counted = patches_counted(results)
    for slug, cell in model_cells(experiment).items():
        if cell.transformer.is_dpar and slug not in counted:
            continue  # its operations are not known
        config = cost.network(experiment, cell.transformer)
        patches = counted[slug] if cell.transformer.is_dpar else None
        for history in sorted((results / "models" / slug).glob("*/history.jsonl")):
            check_recorded(*histories([history]))
            records = read_json_lines(history)
            speeds = [r["perf/images_per_s"] / r.get("perf/devices", 1) for r in records if "perf/images_per_s" in r]
            if speeds:
                yield 2e9 * float(flops.training_gmacs(config, patches)) * statistics.median(speeds)


def measured_sampling(experiment: Experiment, results: Path) -> Iterator[float]:
    """Operations per second of one device, one number per job that drew images."""
    counted, cells, models = patches_counted(results), sample_cells(experiment), model_cells(experiment)
    for events in sorted(results.glob("tracking/spool/sample_images/*/events.jsonl")):
        speeds, name = [], None
        for event in read_events(events.parent):
            name = event.get("params", {}).get("cell", name)
            speeds += [float(v) for k, v in event.get("values", {}).items() if k == "sample/images_per_s"]
        if name in cells and speeds:
            cell = cells[name]
            patched = models[cell.model].transformer.is_dpar
            if cell.gate or cell.patchify != models[cell.model].patchify or (patched and cell.model not in counted):
                continue  # its patches were not counted
            patches = counted[cell.model] if patched else None
            drawn = cost.sampling_gmacs(experiment, models[cell.model], cell, patches)
            yield 2e9 * float(drawn or 0) * speeds[-1]
