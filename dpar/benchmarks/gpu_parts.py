"""The parts of `dpar.benchmarks.gpu_check`, one per process: `python -m dpar.benchmarks.gpu_parts PART FILE`.

A part adds rows (`what`, `value`, perhaps `predicted`) and the numbers behind them to its file as it goes. It makes its
measurements one by one: where one fails, its row says so, and the part goes on and ends with status 1.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dpar.benchmarks import train
from dpar.benchmarks.conditions import conditions
from dpar.benchmarks.llamagen import own_sampler
from dpar.benchmarks.pairs import DEMO, Sizes, request_of, table1
from dpar.benchmarks.sample import COMPILED, EAGER, Pair
from dpar.benchmarks.sample import Settings as Sampled
from dpar.benchmarks.timing import timed
from dpar.data.codes import open_codes
from dpar.device import default_device, peak_flops
from dpar.experiment.cells import merged_thresholds, model_cells, threshold_of
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import Training, Transformer
from dpar.files import write_bytes, write_json
from dpar.model.attention import BACKENDS, fastest_backend, why_not
from dpar.model.variants import build_model
from dpar.patches.rule import PatchRule
from dpar.sampling.captured import GraphStore
from dpar.sampling.fused_noise import fuses_noise
from dpar.sampling.preview import previewer
from dpar.sampling.static_cache import reads_in_place
from dpar.tracking.spool import EventFile, Job
from dpar.train.distributed import Ranks
from dpar.train.loop import Task, Trainer
from dpar.train.objective import likelihood

TESTS = (
    "tests/sampling/test_captured.py", "tests/sampling/test_sampler.py", "tests/sampling/test_fused_noise.py",
    "tests/model", "tests/train/test_blocks.py", "tests/patches/test_rule.py", "tests/benchmarks/test_train.py",
    "tests/evaluation/test_precision_recall.py",
)  # fmt: skip
TURNS = 3  # of each way to draw a batch
PATIENCE_S = 5  # of a measurement with what is predicted
LEARNING_S = 70  # seconds of training on real tokens
EVERY = 20  # steps between two looks at the clock


@dataclass
class Report:
    """The file of a part."""

    path: Path
    found: dict[str, Any] = field(default_factory=lambda: {"rows": []})
    failures: list[str] = field(default_factory=list)

    def row(self, what: str, value: str, predicted: str = "", **numbers: Any) -> None:
        """Adds a row of the table with the numbers behind it."""
        self.found["rows"].append({"what": what, "value": value, "predicted": predicted, **numbers})
        self.save()

    def save(self, **more: Any) -> None:
        """Adds what stands in no row."""
        self.found |= more
        write_json(self.path, self.found)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """A measurement without which the part goes on."""
        try:
            yield
        except Exception as error:  # whatever it is: there may be no other time on this machine
            traceback.print_exc()
            said = next(iter(str(error).strip().splitlines()), "")
            self.failures.append(f"{what}: {type(error).__name__}: {said}")
            self.row(what, f"failed: {type(error).__name__}: {said:.150}")


def environment(report: Report, args: argparse.Namespace) -> None:
    """The machine, its packages, and which of the faster ways work here."""
    device = default_device()
    report.save(conditions=conditions(device))
    here = report.found["conditions"]
    report.row("card", str(here["card"]), versions=here["versions"])
    for backend in BACKENDS:
        for dtype in (torch.bfloat16, torch.float32) if backend != "flex" else ():
            reason = why_not(backend, device, dtype)
            said = reason.split(";")[0] if reason else "works"
            report.row(f"packed attention {backend}, {str(dtype).removeprefix('torch.')}", said)
    if device.type != "cuda":
        return
    for dtype in (torch.bfloat16, torch.float16):
        with report.trying(f"keys read in place, {dtype}"):
            works = reads_in_place(device, dtype, 64)
            report.row(f"keys read in place, {str(dtype).removeprefix('torch.')}", "yes" if works else "no", "yes")
    with report.trying("noise in one kernel"):
        report.row("noise in one kernel", "yes" if fuses_noise(device) else "no", "yes")
    with report.trying("bf16 product"):
        x = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        for _ in range(3):
            torch.mm(x, x)
        seconds = statistics.median(timed(lambda: torch.mm(x, x), device)[0] for _ in range(10))
        peak = peak_flops(device)
        promised = f"{peak / 1e12:.0f} by the maker" if peak else ""
        report.row("bf16 product of 8192, TFLOP/s", f"{2 * 8192**3 / seconds / 1e12:.0f}", promised)
    with report.trying("copy"):
        y = torch.empty(2**30, device=device, dtype=torch.bfloat16)
        z = torch.empty_like(y)
        seconds = statistics.median(timed(lambda: z.copy_(y), device)[0] for _ in range(10))
        report.row("copy, TB/s", f"{2 * y.nbytes / seconds / 1e12:.2f}")


def tests(report: Report, args: argparse.Namespace) -> None:
    """The tests that need a GPU: captured equals launched, packed back ends agree, a step never waits."""
    if importlib.util.find_spec("pytest") is None:
        report.row("tests", "no pytest here")
        return
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--no-header", "-rs"]
    command = [sys.executable, "-m", "pytest", *options, *TESTS]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8") as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
            report.save(output=lines[-60:])
    report.row("tests marked gpu", lines[-1] if lines else "they said nothing", status=running.returncode)
    if running.returncode not in (0, 5):  # 5: there are none
        report.failures.append(f"pytest ended with status {running.returncode}")


def pair_of(size: str, args: argparse.Namespace) -> tuple[Pair, Sizes]:
    """Untrained networks of a pair of Table 1 at 256 px; the demo's for a trial."""
    device = default_device()
    sizes = DEMO if args.tiny else table1(size, 256)
    precision = "bfloat16" if device.type == "cuda" else "float32"
    return Pair.untrained(sizes, Sampled(precision, 2.0, args.llamagen), device), sizes


def sampling(report: Report, args: argparse.Namespace) -> None:
    """Milliseconds per token of DPAR and LlamaGen: captured, launched, and with each precision of the entropy model."""
    batches = (2, 4) if args.tiny else (128, 256, 32)
    with nullcontext() if args.tiny else Roofline("XL", batches) as predicted:
        pair, sizes = pair_of("XL", args)
        for batch in batches:
            with report.trying(f"{batch} images"):
                compare(report, pair, sizes, batch, predicted)
        request = request_of(batches[0], sizes, pair.networks.device)
        with report.trying("launched"):
            for name in EAGER:
                draw_and_report(report, pair, name, request, capture=False)
        for precision in ("float32", "bfloat16"):
            with report.trying(f"entropies in {precision}"):
                draw_and_report(report, pair.with_entropies(precision), "DPAR", request)


def compiled(report: Report, args: argparse.Namespace) -> None:
    """The same of the pair B, in graphs of compiled code: an XL compiles for minutes."""
    batch = 4 if args.tiny else 128
    pair, sizes = pair_of("B", args)
    for names in (EAGER, COMPILED):
        with report.trying(f"{batch} images: {names[0]}"):
            compare(report, pair, sizes, batch, names=names)


def llamagen(report: Report, args: argparse.Namespace) -> None:
    """LlamaGen's own script, compiled with CUDA graphs as it does, compared with LlamaGen here."""
    batch = 4 if args.tiny else 128
    pair, sizes = pair_of("XL", args)
    request = request_of(batch, sizes, pair.networks.device)
    seconds = draw_and_report(report, pair, "LlamaGen", request)
    own = partial(own_sampler(args.llamagen, pair.baseline, 2.0), batch)
    own()
    theirs = statistics.median(timed(own, pair.networks.device)[0] for _ in range(TURNS))
    report.row(
        f"{batch} images: LlamaGen here over its own script, images per second", f"{theirs / seconds:.2f}", "1.5"
    )


def compare(
    report: Report,
    pair: Pair,
    sizes: Sizes,
    batch: int,
    predicted: "Roofline | None" = None,
    names: Sequence[str] = EAGER,
) -> None:
    """Rows of both models of a pair, captured, and of the first over the second."""
    request, said = request_of(batch, sizes, pair.networks.device), {}
    seconds = [draw_and_report(report, pair, name, request) for name in names]
    if predicted is not None:
        said = predicted.rows().get(batch, {})
    for key, row in zip(("dpar_ms", "llamagen_ms"), report.found["rows"][-2:], strict=True):
        row["predicted"] = f"{said[key]:.2f}" if said else ""
    what = f"{batch} images: {names[0]} over {names[1]}, images per second"
    report.row(what, f"{seconds[1] / seconds[0]:.2f}", f"{said['ratio']:.2f}" if said else "")


def draw_and_report(report: Report, pair: Pair, name: str, request: dict[str, Any], *, capture: bool = True) -> float:
    """Seconds of a batch, in a row as milliseconds per token, which says how it was drawn."""
    device, model = pair.networks.device, pair.networks.model if name.startswith("DPAR") else pair.baseline
    store = GraphStore() if capture else None
    draw = partial(pair.sampled, name, request, store=store)
    first = timed(draw, device)[0]
    if capture:
        draw()  # a part is captured when it is called for the second time
    turns = [timed(draw, device) for _ in range(TURNS)]
    seconds, batch = statistics.median(taken for taken, _ in turns), len(request["labels"])
    how = "captured" if store is not None and store.captured else "launched"
    if store is not None and store.failure is not None:
        how += f" (capturing failed: {store.failure:.100})"
    how += f", entropies in {pair.networks.entropy_precision}" if name.startswith("DPAR") else ""
    report.row(
        f"{batch} images: {name}, {how}, ms per token",
        f"{1000 * seconds / model.config.tokens:.2f}",
        images_per_s=batch / seconds,
        seconds=[taken for taken, _ in turns],
        first_draw_seconds=first,
        patches=turns[0][1].starts.sum(1).float().mean().item(),
    )
    return seconds


class Roofline:
    """Predictions for a pair at 256 px by counted kernels and bytes, of a process next to the measurements."""

    def __init__(self, size: str, batches: Sequence[int]):
        flags = ["--size", size, "--resolution", "256", "--json", "--batches", *map(str, batches)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dpar.cli", "bench", "roofline", *flags], stdout=subprocess.PIPE, encoding="utf-8"
        )
        self.found: dict[int, dict[str, Any]] | None = None

    def __enter__(self) -> "Roofline":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def rows(self) -> dict[int, dict[str, Any]]:
        """By batch; none where it says nothing in time."""
        if self.found is None:
            try:
                text = self.process.communicate(timeout=PATIENCE_S)[0]
            except subprocess.TimeoutExpired:
                return {}
            self.found = {row["batch"]: row for row in json.loads(text)["rows"]} if text else {}
        return self.found


def training(size: str, resolution: int, batch: int, accumulate: int) -> Callable[[Report, argparse.Namespace], None]:
    """A part that times steps of a pair, called and then compiled: called code is measured where nothing compiles."""

    def part(report: Report, args: argparse.Namespace) -> None:
        device = default_device()
        precision = "bfloat16" if device.type == "cuda" else "float32"
        backend = fastest_backend(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
        pair = [Transformer.model_validate({"variant": f"{kind}-{size}"}) for kind in ("DPAR", "LlamaGen")]
        if args.tiny:
            small = {"variant": None, "width": 32, "heads": 2, "layers": 2}
            pair = [
                Transformer(architecture="dpar", encoder_layers=1, decoder_layers=1, **small),
                Transformer(architecture="llamagen", **small),
            ]
        for compiled in (False,) if args.tiny else (False, True):
            how = "compiled" if compiled else "called"
            settings = {
                "steps": 1,
                "batch_size": 2 if args.tiny else batch,
                "accumulate": 1 if args.tiny else accumulate,
            }
            plan = train.Plan(
                *pair,
                resolution=64 if args.tiny else resolution,
                p_avg=train.PAPER_P_AVG[resolution],
                training=Training.model_validate(settings | {"precision": precision, "compile": compiled}),
                turns=1 if args.tiny else 3,
                attention=(backend,),
                eager=not compiled,
            )
            with report.trying(f"{how}: time ratio"):
                found = train.measure(plan, device, say=lambda line: print(line, file=sys.stderr, flush=True))
                report.save(**{how: found})
                report.row(f"{how}: time ratio", f"{found['time_ratio']:.3f}", f"{found['flop_ratio']:.3f} by FLOPs")
                for step in found["steps"]:
                    report.row(f"{how}: {step['model']}", _step(step), "MFU 45%")

    return part


def _step(step: dict[str, Any]) -> str:
    mfu, memory = step["mfu"], step["memory_gib"]
    words = [f"{step['step_ms']:.0f} ms", f"MFU {mfu:.0%}" if mfu else "", f"{memory:.1f} GiB" if memory else ""]
    return ", ".join([*filter(None, words), f"first step {step['first_step_s']:.0f} s"])


def real_tokens(report: Report, args: argparse.Namespace) -> None:
    """A minute of training the experiment's DPAR on its own codes: the likelihood, and samples before and after."""
    device, seconds = default_device(), 5 if args.tiny else LEARNING_S
    state_folder = report.path.with_name("real-tokens-state")
    shutil.rmtree(state_folder, ignore_errors=True)
    state_folder.mkdir(parents=True)
    trainer, look = trainer_of(args.results, device, state_folder)
    task = trainer.task

    def state(when: str) -> float:
        found = likelihood(
            trainer.model, task.val, rule=task.rule, precision=task.training.precision, ranks=trainer.ranks
        )
        write_bytes(report.path.with_name(f"samples-{when}.png"), look(trainer._network(trainer.model.state_dict())))
        report.row(f"NLL {when}, nats per token", f"{found.nll:.3f}")
        return found.nll

    before, start = state("before"), time.monotonic()
    stream = trainer.stream()
    while time.monotonic() - start < seconds:
        for _ in range(EVERY):
            trainer.advance(stream)
        timed(lambda: None, device)
    took = time.monotonic() - start
    pace = trainer.step * task.training.batch_size / took
    report.row("steps", f"{trainer.step} in {took:.0f} s, {pace:.0f} images per second")
    report.save(learned=before - state("after"))


def trainer_of(results: Path, device: torch.device, state: Path) -> tuple[Trainer, Callable[[Any], bytes]]:
    """The training of the first DPAR of the experiment in a results folder, at its beginning, and a preview of it."""
    experiment = load_experiment(results / "experiment.json")
    cell = next(cell for cell in model_cells(experiment).values() if cell.transformer.is_dpar)
    train_codes, val = (open_codes(results / "scored" / split / "manifest.json") for split in ("train", "val"))
    thresholds = merged_thresholds(sorted((results / "thresholds").glob("*.json")))
    rule = PatchRule.of(cell.patchify, threshold_of(cell.patchify, thresholds), experiment.grid[1])
    torch.manual_seed(cell.seed)
    sizes = {"vocab_size": experiment.tokenizer.vocab_size, "grid": experiment.grid}
    model = build_model(cell.transformer, **sizes, num_classes=experiment.images.num_classes).to(device)
    task = Task(model, cell.training, train_codes, val, cell.patchify, rule, cell.seed, 0)
    precision = train_codes.metadata.entropy_precision
    look = previewer(
        results / "tokenizer",
        results / "entropy_model" if rule.is_dynamic else None,
        rule=rule,
        sampling=experiment.sampling,
        seed=experiment.seed,
        entropy_precision=precision,
    )
    return Trainer(task, state, Ranks(device), Job(state, EventFile(state / "events.jsonl"))), look


PARTS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "environment": environment,
    "tests": tests,
    "sampling": sampling,
    "training-XL-384": training("XL", 384, 32, 2),
    "training-L-256": training("L", 256, 64, 1),
    "real-tokens": real_tokens,
    "compiled": compiled,
    "llamagen": llamagen,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one part.

    Raises:
        SystemExit: with status 1, a measurement failed, or what the part stands on.
    """
    flags = argparse.ArgumentParser(prog="gpu_parts", description=__doc__)
    flags.add_argument("part", choices=PARTS)
    flags.add_argument("path", type=Path)
    for name in ("results", "llamagen"):
        flags.add_argument(f"--{name}", type=Path)
    flags.add_argument("--tiny", action="store_true")
    args = flags.parse_args(argv)
    os.environ.setdefault("DPAR_CACHE", str(args.path.with_name("cache")))
    report = Report(args.path)
    PARTS[args.part](report, args)
    if report.failures:
        sys.exit("; ".join(report.failures))


if __name__ == "__main__":
    main()
