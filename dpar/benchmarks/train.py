"""One optimizer step of DPAR compared with one of LlamaGen of the same size: time, where it goes, and memory.

The steps are the trainer's own, on codes that a store on disk holds; codes and entropies are drawn, and E_Th is
calibrated to the paper's mean patch length. All kinds of steps take turns, so that whatever else the machine does meets
each of them, and ratios are taken within a turn.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

import numpy as np
import torch

from dpar.benchmarks.conditions import conditions
from dpar.benchmarks.made_up import made_up_codes
from dpar.benchmarks.step_profile import StepParts, state_memory, step_memory
from dpar.data.codes import CodeStore
from dpar.data.loader import batches, prefetched
from dpar.device import default_device, peak_flops
from dpar.errors import InputError
from dpar.experiment.settings import VARIANTS, Patchify, Training, Transformer
from dpar.model.attention import Backend, fastest_backend, why_not
from dpar.model.flops import forward_gmacs, training_gmacs
from dpar.model.variants import build_model
from dpar.paper import DOWNSAMPLE, NUM_CLASSES, PAPER_MAX_LENGTH, PAPER_PATCHES, VOCAB_SIZE
from dpar.patches.calibration import calibrate
from dpar.patches.packing import PatchLayout
from dpar.patches.rule import PatchRule
from dpar.tracking.spool import EventFile, Job
from dpar.train.distributed import Ranks
from dpar.train.loop import Trainer
from dpar.train.objective import Inputs
from dpar.train.task import Task
from dpar.workflow.options import COUNT, SIDE, Parser

PAPER_P_AVG = {256: 1.81, 384: 2.06}
"""Mean patch length in tokens by resolution in pixels (Section 4.1)."""

STORED = 1024  # images of the store, at least
STEPS_A_TURN = {"cpu": 1, "cuda": 5}  # a GPU is given its next step before the last one has ended


@dataclass(frozen=True)
class Plan:
    """The pair that is timed, and how.

    Attributes:
        dpar, llamagen: the pair.
        resolution: pixels; a token is 16 x 16 of them.
        p_avg: mean patch length in tokens to which E_Th is calibrated.
        training: of both.
        turns: that count.
        attention: back ends of packed attention to compare; the first that works is the headline's, and the only one
            where code is compiled.
        eager: whether eager code is timed next to compiled code.
    """

    dpar: Transformer
    llamagen: Transformer
    resolution: int
    p_avg: float
    training: Training
    turns: int
    attention: tuple[Backend, ...]
    eager: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens per image."""
        return self.resolution // DOWNSAMPLE, self.resolution // DOWNSAMPLE


@dataclass
class Variant:
    """One kind of step, and what its turns gave.

    Attributes:
        trainer: whose steps are taken; variants of one model share it.
        stream: micro-batches for these steps alone.
        attention: back end of packed attention; None for LlamaGen.
        compiled: whether compiled code runs.
        first: seconds of the first step, compilation included.
        seconds: a step, one number a turn.
        busy: seconds of the process' processor time a step; of a CPU's step, what other processes took does not count.
        patches: of each image that the counted steps saw.
        parts: seconds per step by part of the step.
        memory: bytes that a step needed in addition to weights and moments; None where that cannot be seen.
    """

    trainer: Trainer
    stream: Iterator[tuple[list[int], Inputs]]
    attention: Backend | None
    compiled: bool
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    patches: list[int] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    memory: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        words = [type(self.trainer.model).__name__, self.attention, "compiled" if self.compiled else None]
        return " ".join(word for word in words if word)

    def take(self, steps: int) -> None:
        """Takes steps, on the device too."""
        model, device = self.trainer.model, self.trainer.ranks.device
        if self.attention is not None:
            model.config = model.config.model_copy(update={"attention": self.attention})
        eager = self.trainer.task.training.compile and not self.compiled
        with torch.compiler.set_stance("force_eager" if eager else "default"):
            for _ in range(steps):
                self.trainer.advance(self._seen())
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def _seen(self) -> Iterator[tuple[list[int], Inputs]]:
        for images, given in self.stream:
            self.patches += given.layout.packed.lengths if given.layout else ()
            yield images, given

    def gmacs(self) -> float:
        """1e9 multiply-accumulates of a training step per image, in the mean over the images seen."""
        patches = np.array(self.patches) if self.patches else None
        return float(np.mean(training_gmacs(self.trainer.model.config, patches)))


def preparation(task: Task, device: torch.device, steps: int) -> dict[str, float]:
    """Seconds that one batch costs before the network sees it, by part, one after the other on one thread."""
    assert task.rule is not None
    stream = batches(task.train, batch_size=task.training.batch_size, seed=task.seed)
    parts = {"data": [], "patchify": [], "packing": []}
    for _ in range(steps):
        clock = [time.perf_counter()]
        batch = next(stream)
        clock.append(time.perf_counter())
        assert batch.entropy is not None
        starts = task.rule.starts(batch.entropy)
        clock.append(time.perf_counter())
        Inputs(batch.tokens, batch.labels, PatchLayout.from_starts(starts)).to(device)
        clock.append(time.perf_counter())
        for part, begin, end in zip(parts.values(), clock, clock[1:], strict=False):
            part.append(end - begin)
    return {name: statistics.median(seconds) for name, seconds in parts.items()}


def measure(plan: Plan, device: torch.device, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The times of all kinds of steps, for JSON.

    Args:
        plan: what is timed.
        device: where.
        say: told how far it is.

    Raises:
        InputError: no back end of packed attention that was asked for works here.
    """
    working, refused = _back_ends(plan, device)
    with TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        codes = made_up_codes(folder, images=max(STORED, plan.training.batch_size), resolution=plan.resolution)
        assert codes.entropy is not None
        threshold = calibrate(codes.entropy[:, 0], plan.p_avg, max_length=PAPER_MAX_LENGTH, grid_width=plan.grid[1])
        patchify = Patchify(threshold=threshold, p_avg=None, max_length=PAPER_MAX_LENGTH)
        job = Job(folder, stack.enter_context(contextlib.closing(EventFile(folder / "events.jsonl"))))
        llamagen, dpar = (
            _trainer(_task(transformer, plan, codes, patchify, device), folder, device, job)
            # what is compiled depends on the back end that the model is built with
            for transformer in (plan.llamagen, plan.dpar.model_copy(update={"attention": working[0]}))
        )
        variants = _variants(plan, llamagen, dpar, working, stack)
        steps = STEPS_A_TURN[device.type]
        for turn in range(plan.turns + 1):
            for variant in variants:
                _turn(variant, steps, counts=turn > 0)
            times = ", ".join(f"{v.name} {(v.seconds or [v.first])[-1]:.3f} s" for v in variants)
            say(f"{f'turn {turn} of {plan.turns}' if turn else 'first steps'}: {times}")
        for variant in variants:
            _look_inside(variant, steps, device)
        prepared = preparation(dpar.task, device, steps=20)
    return _found(plan, device, variants, prepared, refused)


def _back_ends(plan: Plan, device: torch.device) -> tuple[list[Backend], Mapping[Backend, str | None]]:
    """The back ends of packed attention that work here, at least one, and of all why not (None: it works)."""
    dtype = torch.bfloat16 if plan.training.precision == "bfloat16" else torch.float32
    refused: dict[Backend, str | None] = {backend: why_not(backend, device, dtype) for backend in plan.attention}
    working: list[Backend] = [backend for backend, reason in refused.items() if reason is None]
    if not working:
        raise InputError(
            f"no packed attention that was asked for can train on {device.type} in {plan.training.precision}: "
            + "; ".join(f"{backend}: {reason}" for backend, reason in refused.items())
        )
    return working, refused


def _variants(
    plan: Plan, llamagen: Trainer, dpar: Trainer, working: Sequence[Backend], stack: contextlib.ExitStack
) -> list[Variant]:
    def variant_of(trainer: Trainer, attention: Backend | None, compiled: bool) -> Variant:
        stream = cast(Generator, prefetched(trainer.stream()))
        return Variant(trainer, stack.enter_context(contextlib.closing(stream)), attention, compiled)

    modes = ((True, False) if plan.eager else (True,)) if plan.training.compile else (False,)
    variants = [variant_of(llamagen, None, mode) for mode in modes]
    variants += [variant_of(dpar, working[0], mode) for mode in modes]
    if not plan.training.compile:
        variants += [variant_of(dpar, backend, False) for backend in working[1:]]
    return variants


def _task(transformer: Transformer, plan: Plan, codes: CodeStore, patchify: Patchify, device: torch.device) -> Task:
    torch.manual_seed(0)
    with device:
        model = build_model(transformer, vocab_size=VOCAB_SIZE, grid=plan.grid, num_classes=NUM_CLASSES)
    return Task(
        model=model,
        training=plan.training,
        train=codes,
        val=codes,
        patchify=patchify if transformer.is_dpar else None,
        rule=PatchRule.of(patchify, patchify.threshold, plan.grid[1]) if transformer.is_dpar else None,
        seed=0,
        recipe=0,
    )


def _trainer(task: Task, folder: Path, device: torch.device, job: Job) -> Trainer:
    trainer = Trainer(task, folder / type(task.model).__name__, Ranks(device), job)
    trainer.network.train()
    return trainer


def _turn(variant: Variant, steps: int, *, counts: bool) -> None:
    """One turn; the first is there to compile and to warm up."""
    began = time.perf_counter()
    if not counts:
        variant.take(1)
        variant.first = time.perf_counter() - began
        variant.take(steps)
        variant.patches.clear()
        return
    busy = time.process_time()
    variant.take(steps)
    variant.seconds.append((time.perf_counter() - began) / steps)
    variant.busy.append((time.process_time() - busy) / steps)


def _look_inside(variant: Variant, steps: int, device: torch.device) -> None:
    """More steps, which do not count: where their time goes, and what memory they need."""
    seen = len(variant.patches)
    parts = StepParts(device)
    with parts.watching(variant.trainer):
        variant.take(steps)
    variant.parts = {name: seconds / steps for name, seconds in parts.seconds().items()}
    variant.memory = step_memory(device, lambda: variant.take(1))
    del variant.patches[seen:]


def _found(
    plan: Plan,
    device: torch.device,
    variants: list[Variant],
    prepared: dict[str, float],
    refused: Mapping[Backend, str | None],
) -> dict[str, Any]:
    baselines = {variant.compiled: variant for variant in variants if variant.attention is None}
    rows = [_row(variant, baselines[variant.compiled], plan, device) for variant in variants]
    headline = next(row for row in rows if row["attention"] and row["compiled"] == plan.training.compile)
    dpar, llamagen = (variant.trainer.model.config for variant in (variants[-1], variants[0]))
    patches = PAPER_PATCHES.get(plan.resolution)
    step = headline["step_ms"] / 1000
    return {
        **{name: headline[name] for name in ("time_ratio", "time_ratio_quartiles", "flop_ratio", "time_over_flops")},
        "processor_ratio": headline["processor_ratio"],
        "table8_ratio": patches and float(forward_gmacs(dpar, patches) / forward_gmacs(llamagen)),
        "steps": rows,
        "attention": {backend: reason or "timed" for backend, reason in refused.items()},
        "preparation": {name: {"ms": 1000 * s, "share": s / step} for name, s in prepared.items()},
        "shapes": {
            "models": [plan.llamagen.variant or "LlamaGen", plan.dpar.variant or "DPAR"],
            "resolution": plan.resolution,
            "tokens": dpar.tokens,
            "vocab_size": dpar.vocab_size,
            "batch_size": plan.training.batch_size,
            "accumulate": plan.training.accumulate,
            "precision": plan.training.precision,
            "patches_mean": headline["patches_mean"],
            "p_avg": headline["p_avg"],
            "turns": plan.turns,
            "steps_a_turn": STEPS_A_TURN[device.type],
        },
        "conditions": conditions(device),
    }


def _row(variant: Variant, baseline: Variant, plan: Plan, device: torch.device) -> dict[str, Any]:
    tokens, batch = variant.trainer.model.config.tokens, plan.training.batch_size
    step = statistics.median(variant.seconds)
    ratios = _ratios(variant.seconds, baseline.seconds)
    flop_ratio = variant.gmacs() / baseline.gmacs()
    operations = 2e9 * variant.gmacs() * batch / step  # a multiply-accumulate is two
    peak = peak_flops(device) if plan.training.precision == "bfloat16" else None
    inside = sum(variant.parts.values())
    return {
        "model": type(variant.trainer.model).__name__,
        "attention": variant.attention,
        "compiled": variant.compiled,
        "step_ms": 1000 * step,
        "step_ms_quartiles": [1000 * s for s in _quartiles(variant.seconds)],
        "first_step_s": variant.first,
        "time_ratio": statistics.median(ratios),
        "time_ratio_quartiles": _quartiles(ratios),
        "flop_ratio": flop_ratio,
        "time_over_flops": statistics.median(ratios) / flop_ratio,
        "processor_ms": 1000 * statistics.median(variant.busy),
        "processor_ratio": statistics.median(_ratios(variant.busy, baseline.busy)),
        "tokens_per_s": batch * tokens / step,
        "tflops": operations / 1e12,
        "mfu": peak and operations / peak,
        "memory_gib": None if variant.memory is None else (variant.memory + state_memory(variant.trainer)) / 2**30,
        "shares": {name: seconds / inside for name, seconds in variant.parts.items()},
        "patches_mean": statistics.fmean(variant.patches) if variant.patches else None,
        "p_avg": statistics.fmean(tokens / m for m in variant.patches) if variant.patches else None,
    }


def _ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, (0.25, 0.75))]


def table(found: dict[str, Any]) -> str:
    """The findings of `measure`, as Markdown for people."""
    shapes, here = found["shapes"], found["conditions"]
    llamagen, dpar = shapes["models"]
    over = found["time_over_flops"]
    head = ["step", "ms", "quartiles", "time ratio", "FLOP ratio", "tokens/s", "TFLOP/s", "MFU", "GiB"]
    head += [f"{part} %" for part in found["steps"][0]["shares"]]
    rows = [head, ["---"] * len(head)]
    for row in found["steps"]:
        words = [row["model"], row["attention"], "compiled" if row["compiled"] else None]
        rows.append(
            [
                " ".join(word for word in words if word),
                f"{row['step_ms']:.1f}",
                " - ".join(f"{ms:.1f}" for ms in row["step_ms_quartiles"]),
                f"{row['time_ratio']:.3f}",
                f"{row['flop_ratio']:.3f}",
                f"{row['tokens_per_s']:.0f}",
                f"{row['tflops']:.3g}",
                "" if row["mfu"] is None else f"{row['mfu']:.1%}",
                "" if row["memory_gib"] is None else f"{row['memory_gib']:.2f}",
                *(f"{100 * share:.1f}" for share in row["shares"].values()),
            ]
        )
    machine = f"{here['threads']} threads, {here['card'] or here['processor']}, load {here['load']}"
    absent = [f"{backend} cannot train here: {said}" for backend, said in found["attention"].items() if said != "timed"]
    prepared = ", ".join(
        f"{name} {part['ms']:.2f} ms ({part['share']:.2%})" for name, part in found["preparation"].items()
    )
    table8 = "" if found["table8_ratio"] is None else f", Table 8's ratio {found['table8_ratio']:.3f}"
    quartiles = " - ".join(f"{ratio:.3f}" for ratio in found["time_ratio_quartiles"])
    lines = [
        f"{dpar} compared with {llamagen}: {shapes['resolution']} px, T = {shapes['tokens']}, "
        f"V = {shapes['vocab_size']}, batch {shapes['batch_size']} in {shapes['accumulate']} part(s), "
        f"{shapes['precision']}, M = {shapes['patches_mean']:.1f}, P_avg = {shapes['p_avg']:.3f}",
        "",
        f"Time ratio **{found['time_ratio']:.3f}** (quartiles {quartiles}), FLOP ratio {found['flop_ratio']:.3f}"
        f"{table8}; time over FLOPs **{over:.3f}**; ratio of processor time {found['processor_ratio']:.3f}",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Before the step, on a thread of its own: {prepared} of DPAR's step.",
        *(f"{line}." for line in absent),
        f"{shapes['turns']} turns of {shapes['steps_a_turn']} step(s); torch {here['versions']['torch']}, "
        f"{machine}, commit {here['commit']}.",
    ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    sizes = [name.removeprefix("DPAR-") for name in VARIANTS if name.startswith("DPAR-")]
    flags = Parser(prog="dpar bench train", description=__doc__)
    flags.add_argument("--size", choices=sizes, default="B", help="of the pair (default: B)")
    flags.add_argument("--resolution", type=SIDE, default=256, help="pixels, the side of the image (default: 256)")
    flags.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    flags.add_argument("--precision", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    flags.add_argument("--batch-size", type=COUNT, metavar="IMAGES", help="a step (default: 32 on a GPU, else 8)")
    flags.add_argument("--accumulate", type=COUNT, default=1, metavar="N", help="micro-batches per step (default: 1)")
    flags.add_argument("--compile", action="store_true", help="compiled code next to eager code, with one back end")
    flags.add_argument(
        "--attention",
        choices=get_args(Backend),
        nargs="+",
        help="back ends of packed attention (default: all that work)",
    )
    flags.add_argument("--turns", type=COUNT, default=9, help="that count (default: 9)")
    flags.add_argument("--json", action="store_true", help="print JSON, and the table for people on standard error")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Times the steps and prints what was found.

    Raises:
        InputError: the settings do not fit each other, or `measure` refuses.
    """
    args = parser().parse_args(argv)
    device = torch.device(args.device) if args.device else default_device()
    precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    fastest = fastest_backend(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    others = [backend for backend in get_args(Backend) if backend != fastest]
    plan = Plan(
        dpar=Transformer.model_validate({"variant": f"DPAR-{args.size}"}),
        llamagen=Transformer.model_validate({"variant": f"LlamaGen-{args.size}"}),
        resolution=args.resolution,
        p_avg=PAPER_P_AVG.get(args.resolution, PAPER_P_AVG[256]),
        training=Training.model_validate(
            {
                "steps": 1,
                "batch_size": args.batch_size or (32 if device.type == "cuda" else 8),
                "accumulate": args.accumulate,
                "precision": precision,
                "compile": args.compile,
            }
        ),
        turns=args.turns,
        attention=tuple(args.attention or [fastest, *others]),
    )
    found = measure(plan, device, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(table(found), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(found, indent=2))
