"""One optimizer step of DPAR beside one of LlamaGen of the same size: time, where it goes, and memory.

The steps are the trainer's own, on codes that a store on disk holds; codes and entropies are drawn, and E_Th is
calibrated to the paper's mean patch length. All kinds of steps take turns, so that whatever else the machine does meets
each of them, and ratios are taken within a turn.
"""

import argparse
import contextlib
import ctypes
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
import psutil
import torch
from jaxtyping import Float32

from dpar.benchmarks.conditions import conditions
from dpar.commands.info import DOWNSAMPLE, NUM_CLASSES, PAPER_MAX_LENGTH, PAPER_PATCHES, VOCAB_SIZE
from dpar.config import VARIANTS, Patchify, Training, Transformer
from dpar.data.codes import CodeMetadata, CodeRows, CodeStore, Manifest, open_codes, rows_of_images, write_shard
from dpar.data.loader import batches, prefetched
from dpar.device import default_device, peak_flops
from dpar.errors import InputError
from dpar.evaluation.flops import forward_gmacs, training_gmacs
from dpar.model.attention import Backend, fastest_backend, why_not
from dpar.model.variants import build_model
from dpar.packing import PatchLayout
from dpar.patchify import calibrate, starts_for
from dpar.tracking.spool import EventFile, Job
from dpar.train.distributed import Ranks
from dpar.train.loop import Task, Trainer
from dpar.train.objective import Inputs, Patching

PAPER_P_AVG = {256: 1.81, 384: 2.06}
"""Mean patch length in tokens by resolution in pixels (Section 4.1)."""

STORED = 1024  # images of the store, at least
STEPS_A_TURN = {"cpu": 1, "cuda": 5}  # a GPU is given its next step before the last one has ended


@dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        dpar, llamagen: the pair.
        resolution: pixels; a token is 16 x 16 of them.
        p_avg: mean patch length in tokens to which E_Th is calibrated.
        training: of both.
        turns: that count.
        attention: back ends of packed attention to compare; the first that works is the headline's, and the only one if
            compiled code is compared with eager code.
    """

    dpar: Transformer
    llamagen: Transformer
    resolution: int
    p_avg: float
    training: Training
    turns: int
    attention: tuple[Backend, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens an image."""
        return self.resolution // DOWNSAMPLE, self.resolution // DOWNSAMPLE


@dataclass
class Lane:
    """One kind of step, and what its turns gave.

    Attributes:
        trainer: whose steps are taken; lanes of one model share it.
        stream: micro-batches for these steps alone.
        attention: back end of packed attention; None for LlamaGen.
        compiled: whether compiled code runs.
        first: seconds of the first step, compilation included.
        seconds: a step, one number a turn.
        busy: seconds of the process' processor time a step; of a CPU's step, what other processes took does not count.
        patches: of each image that the counted steps saw.
        parts: seconds a step by part of the step.
        memory: bytes that a step needed beside weights and moments; None where that cannot be seen.
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
        """1e9 multiply-accumulates of a training step an image, in the mean over the images seen."""
        patches = np.array(self.patches) if self.patches else None
        return float(np.mean(training_gmacs(self.trainer.model.config, patches)))


class Parts:
    """Time by part of a step, marked where the model and the optimizer call back."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """From here on it is `part`."""
        if self.device.type == "cuda":
            at = torch.cuda.Event(enable_timing=True)
            at.record()
        else:
            at = time.perf_counter()
        self.marks.append((part, at))

    @contextlib.contextmanager
    def watching(self, trainer: Trainer) -> Iterator[None]:
        """Marks the parts of the steps that are taken in this block."""
        handles = [
            trainer.model.register_forward_pre_hook(lambda *_: self.mark("forward")),
            trainer.model.register_forward_hook(lambda *_: self.mark("backward")),
            trainer.optimizer.register_step_pre_hook(lambda *_: self.mark("optimizer")),
            trainer.optimizer.register_step_post_hook(lambda *_: self.mark("rest")),
        ]
        self.mark("rest")
        try:
            yield
        finally:
            self.mark("end")
            for handle in handles:
                handle.remove()

    def seconds(self) -> dict[str, float]:
        """Seconds of each part; the device must have finished."""
        sums: dict[str, float] = dict.fromkeys(("forward", "backward", "optimizer", "rest"), 0.0)
        for (part, begin), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            sums[part] += begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
        return sums


def step_memory(device: torch.device, step: Callable[[], None]) -> int | None:
    """Bytes that `step` needed at its peak beyond what was allocated before; None where that cannot be seen.

    On a CPU it is what the process' resident memory rose by, which Linux says.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        step()
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again unseen
    peak.write_text("5", "utf-8")  # forget the peak
    before = psutil.Process().memory_info().rss
    step()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8", "replace").splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 - before


def state_memory(trainer: Trainer) -> int:
    """Bytes of weights and moments."""
    moments = [t for state in trainer.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in [*trainer.model.parameters(), *moments])


def drawn_entropies(images: int, grid: tuple[int, int], rng: np.random.Generator) -> Float32[np.ndarray, "images T"]:
    """Entropies in nats that differ from image to image, and within one by region and by token; e_0 is +inf."""
    rows, columns = grid
    level = rng.normal(size=(images, 1, 1))
    regions = rng.normal(size=(images, -(-rows // 4), -(-columns // 4))).repeat(4, 1).repeat(4, 2)
    tokens = rng.normal(size=(images, rows, columns))
    entropy = (6 + 0.5 * level + regions[:, :rows, :columns] + tokens).reshape(images, -1).astype(np.float32)
    entropy[:, 0] = np.inf
    return entropy


def drawn_codes(folder: Path, plan: Plan) -> CodeStore:
    """A store in `folder` with drawn codes and entropies, written and opened as a pipeline does it."""
    rng = np.random.default_rng(0)
    images = max(STORED, plan.training.batch_size)
    rows, columns = plan.grid
    metadata = CodeMetadata(
        grid=plan.grid, vocab_size=VOCAB_SIZE, resolution=plan.resolution, views=1, tokenizer="drawn"
    )
    tokens = rng.integers(0, VOCAB_SIZE, (images, 1, rows * columns)).astype(np.uint16)
    labels = rng.integers(0, NUM_CLASSES, images).astype(np.int32)
    unscored = rows_of_images(tokens, labels, 0, metadata)
    scored = metadata.model_copy(update={"entropy_model": "drawn"})
    entropy = drawn_entropies(images, plan.grid, rng)
    write_shard(folder / "00000.parquet", CodeRows(**(vars(unscored) | {"entropy": entropy, "metadata": scored})))
    manifest = Manifest.build([folder / "00000.parquet"], folder / "manifest.json")
    manifest.save()
    return open_codes(manifest.path, cache=folder / "cache")


def preparation(task: Task, device: torch.device, steps: int) -> dict[str, float]:
    """Seconds that one batch costs before the network sees it, by part, one after the other on one thread."""
    assert task.patching is not None
    patching = task.patching
    stream = batches(task.train, batch_size=task.training.batch_size, seed=task.seed)
    parts = {"data": [], "patchify": [], "packing": []}
    for _ in range(steps):
        clock = [time.perf_counter()]
        batch = next(stream)
        clock.append(time.perf_counter())
        assert batch.entropy is not None
        starts = starts_for(patching.rule, patching.threshold, batch.entropy, patching.grid_width)
        clock.append(time.perf_counter())
        Inputs(batch.tokens, batch.labels, PatchLayout.from_starts(starts)).to(device)
        clock.append(time.perf_counter())
        for part, begin, end in zip(parts.values(), clock, clock[1:], strict=False):
            part.append(end - begin)
    return {name: statistics.median(seconds) for name, seconds in parts.items()}


def measure(plan: Plan, device: torch.device, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """What the benchmark finds, for JSON.

    Args:
        plan: what is timed.
        device: where.
        say: told how far it is.

    Raises:
        InputError: no back end of packed attention that was asked for works here.
    """
    dtype = torch.bfloat16 if plan.training.precision == "bfloat16" else torch.float32
    refused: dict[Backend, str | None] = {backend: why_not(backend, device, dtype) for backend in plan.attention}
    working: list[Backend] = [backend for backend, reason in refused.items() if reason is None]
    if not working:
        raise InputError(
            f"no packed attention that was asked for can train on {device.type} in {plan.training.precision}: "
            + "; ".join(f"{backend}: {reason}" for backend, reason in refused.items())
        )
    with TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        codes = drawn_codes(folder, plan)
        assert codes.entropy is not None
        threshold = calibrate(codes.entropy[:, 0], plan.p_avg, max_length=PAPER_MAX_LENGTH, grid_width=plan.grid[1])
        patching = Patching(
            Patchify(threshold=threshold, p_avg=None, max_length=PAPER_MAX_LENGTH), threshold, plan.grid[1]
        )
        job = Job(folder, stack.enter_context(contextlib.closing(EventFile(folder / "events.jsonl"))))
        llamagen, dpar = (
            _trainer(_task(transformer, plan, codes, patching, device), folder, device, job)
            # what is compiled depends on the back end that the model is built with
            for transformer in (plan.llamagen, plan.dpar.model_copy(update={"attention": working[0]}))
        )

        def lane_of(trainer: Trainer, attention: Backend | None, compiled: bool) -> Lane:
            stream = cast(Generator, prefetched(trainer.stream()))
            return Lane(trainer, stack.enter_context(contextlib.closing(stream)), attention, compiled)

        modes = (True, False) if plan.training.compile else (False,)
        lanes = [lane_of(llamagen, None, mode) for mode in modes] + [lane_of(dpar, working[0], mode) for mode in modes]
        if not plan.training.compile:
            lanes += [lane_of(dpar, backend, False) for backend in working[1:]]
        steps = STEPS_A_TURN[device.type]
        for turn in range(plan.turns + 1):
            for lane in lanes:
                _turn(lane, steps, counts=turn > 0)
            times = ", ".join(f"{lane.name} {(lane.seconds or [lane.first])[-1]:.3f} s" for lane in lanes)
            say(f"{f'turn {turn} of {plan.turns}' if turn else 'first steps'}: {times}")
        for lane in lanes:
            _look_inside(lane, steps, device)
        prepared = preparation(dpar.task, device, steps=20)
    return _found(plan, device, lanes, modes[0], prepared, refused)


def _task(transformer: Transformer, plan: Plan, codes: CodeStore, patching: Patching, device: torch.device) -> Task:
    torch.manual_seed(0)
    with device:
        model = build_model(transformer, vocab_size=VOCAB_SIZE, grid=plan.grid, num_classes=NUM_CLASSES)
    patching_here = patching if transformer.is_dpar else None
    return Task(model=model, training=plan.training, train=codes, val=codes, patching=patching_here, seed=0, recipe=0)


def _trainer(task: Task, folder: Path, device: torch.device, job: Job) -> Trainer:
    trainer = Trainer(task, folder / type(task.model).__name__, Ranks(device), job)
    trainer.network.train()
    return trainer


def _turn(lane: Lane, steps: int, *, counts: bool) -> None:
    """One turn; the first is there to compile and to warm up."""
    began = time.perf_counter()
    if not counts:
        lane.take(1)
        lane.first = time.perf_counter() - began
        lane.take(steps)
        lane.patches.clear()
        return
    busy = time.process_time()
    lane.take(steps)
    lane.seconds.append((time.perf_counter() - began) / steps)
    lane.busy.append((time.process_time() - busy) / steps)


def _look_inside(lane: Lane, steps: int, device: torch.device) -> None:
    """More steps, which do not count: where their time goes, and what memory they need."""
    seen = len(lane.patches)
    parts = Parts(device)
    with parts.watching(lane.trainer):
        lane.take(steps)
    lane.parts = {name: seconds / steps for name, seconds in parts.seconds().items()}
    lane.memory = step_memory(device, lambda: lane.take(1))
    del lane.patches[seen:]


def _found(
    plan: Plan,
    device: torch.device,
    lanes: list[Lane],
    compiled: bool,
    prepared: dict[str, float],
    refused: Mapping[Backend, str | None],
) -> dict[str, Any]:
    baselines = {lane.compiled: lane for lane in lanes if lane.attention is None}
    rows = [_row(lane, baselines[lane.compiled], plan, device) for lane in lanes]
    headline = next(row for row in rows if row["attention"] and row["compiled"] == compiled)
    dpar, llamagen = (lane.trainer.model.config for lane in (lanes[-1], lanes[0]))
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


def _row(lane: Lane, baseline: Lane, plan: Plan, device: torch.device) -> dict[str, Any]:
    tokens, batch = lane.trainer.model.config.tokens, plan.training.batch_size
    step = statistics.median(lane.seconds)
    ratios = _ratios(lane.seconds, baseline.seconds)
    flop_ratio = lane.gmacs() / baseline.gmacs()
    operations = 2e9 * lane.gmacs() * batch / step  # a multiply-accumulate is two
    peak = peak_flops(device) if plan.training.precision == "bfloat16" else None
    inside = sum(lane.parts.values())
    return {
        "model": type(lane.trainer.model).__name__,
        "attention": lane.attention,
        "compiled": lane.compiled,
        "step_ms": 1000 * step,
        "step_ms_quartiles": [1000 * s for s in _quartiles(lane.seconds)],
        "first_step_s": lane.first,
        "time_ratio": statistics.median(ratios),
        "time_ratio_quartiles": _quartiles(ratios),
        "flop_ratio": flop_ratio,
        "time_over_flops": statistics.median(ratios) / flop_ratio,
        "processor_ms": 1000 * statistics.median(lane.busy),
        "processor_ratio": statistics.median(_ratios(lane.busy, baseline.busy)),
        "tokens_per_s": batch * tokens / step,
        "tflops": operations / 1e12,
        "mfu": peak and operations / peak,
        "memory_gib": None if lane.memory is None else (lane.memory + state_memory(lane.trainer)) / 2**30,
        "shares": {name: seconds / inside for name, seconds in lane.parts.items()},
        "patches_mean": statistics.fmean(lane.patches) if lane.patches else None,
        "p_avg": statistics.fmean(tokens / m for m in lane.patches) if lane.patches else None,
    }


def _ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, (0.25, 0.75))]


def table(found: dict[str, Any]) -> str:
    """What `measure` found, as Markdown for people."""
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
        f"{dpar} beside {llamagen}: {shapes['resolution']} px, T = {shapes['tokens']}, V = {shapes['vocab_size']}, "
        f"batch {shapes['batch_size']} in {shapes['accumulate']} part(s), {shapes['precision']}, "
        f"M = {shapes['patches_mean']:.1f}, P_avg = {shapes['p_avg']:.3f}",
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
    flags = argparse.ArgumentParser(prog="dpar bench train", description=__doc__)
    flags.add_argument("--size", choices=sizes, default="B", help="of the pair (default: B)")
    flags.add_argument("--resolution", type=int, default=256, help="pixels, the side of the image (default: 256)")
    flags.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    flags.add_argument("--precision", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    flags.add_argument("--batch-size", type=int, metavar="IMAGES", help="a step (default: 32 on a GPU, else 8)")
    flags.add_argument("--accumulate", type=int, default=1, metavar="N", help="micro-batches a step (default: 1)")
    flags.add_argument("--compile", action="store_true", help="compiled code beside eager code, with one back end")
    flags.add_argument(
        "--attention",
        choices=get_args(Backend),
        nargs="+",
        help="back ends of packed attention (default: all that work)",
    )
    flags.add_argument("--turns", type=int, default=9, help="that count (default: 9)")
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
