"""The parts of `dpar.benchmarks.gpu_check`, one per process: `python -m dpar.benchmarks.gpu_parts PART FILE`.

A part adds rows (`what`, `value`, perhaps `predicted`) and the numbers behind them to its file as it goes.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dpar.benchmarks import train
from dpar.benchmarks.conditions import conditions
from dpar.benchmarks.llamagen import own_sampler
from dpar.benchmarks.pairs import DEMO, Sizes, request_of, table1
from dpar.benchmarks.sample import Pair
from dpar.benchmarks.sample import Settings as Sampled
from dpar.benchmarks.timing import timed
from dpar.data.codes import open_codes
from dpar.device import default_device, peak_flops
from dpar.experiment.cells import merged_thresholds, model_cells, threshold_of
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import Training, Transformer
from dpar.files import write_bytes, write_json
from dpar.model.attention import BACKENDS, fastest_backend, why_not
from dpar.model.entropy import entropy_weights
from dpar.model.variants import build_model
from dpar.patches.rule import PatchRule
from dpar.sampling.captured import GraphStore
from dpar.sampling.preview import previewer
from dpar.sampling.sampler import sample
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
LEARNING_S = 70  # seconds of training on real tokens
EVERY = 20  # steps between two looks at the clock


@dataclass
class Report:
    """The file of a part."""

    path: Path
    found: dict[str, Any] = field(default_factory=lambda: {"rows": []})

    def row(self, what: str, value: str, predicted: str = "", **numbers: Any) -> None:
        """Adds a row of the table with the numbers behind it."""
        self.found["rows"].append({"what": what, "value": value, "predicted": predicted, **numbers})
        self.save()

    def save(self, **more: Any) -> None:
        """Adds what stands in no row."""
        self.found |= more
        write_json(self.path, self.found)


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
    if device.type == "cuda":
        for dtype in (torch.bfloat16, torch.float32):
            works = reads_in_place(device, dtype, 64)
            report.row(f"keys read in place, {str(dtype).removeprefix('torch.')}", "yes" if works else "no")
        x = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        for _ in range(3):
            torch.mm(x, x)
        seconds = statistics.median(timed(lambda: torch.mm(x, x), device)[0] for _ in range(10))
        peak = peak_flops(device)
        promised = f"{peak / 1e12:.0f} by the maker" if peak else ""
        report.row("bf16 product of 8192, TFLOP/s", f"{2 * 8192**3 / seconds / 1e12:.0f}", promised)
        y = torch.empty(2**30, device=device, dtype=torch.bfloat16)
        z = torch.empty_like(y)
        seconds = statistics.median(timed(lambda: z.copy_(y), device)[0] for _ in range(10))
        report.row("copy, TB/s", f"{2 * y.nbytes / seconds / 1e12:.2f}")


def tests(report: Report, args: argparse.Namespace) -> None:
    """The tests that need a GPU: captured equals launched, packed back ends agree, a step never waits."""
    if importlib.util.find_spec("pytest") is None:
        report.row("tests", "no pytest here")
        return
    options = ["-m", "gpu", "-p", "no:cacheprovider", "--no-header", "-rs"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *TESTS], capture_output=True, encoding="utf-8")
    lines = done.stdout.strip().splitlines()
    report.save(output=lines[-60:])
    report.row("tests marked gpu", lines[-1] if lines else done.stderr.strip()[-200:], status=done.returncode)
    if done.returncode not in (0, 5):
        sys.exit("\n".join(lines[-30:]) or done.stderr)


def sampling(report: Report, args: argparse.Namespace) -> None:
    """Milliseconds per token of DPAR and LlamaGen: captured, launched, and with each precision of the entropy model."""
    device = default_device()
    sizes = replace(DEMO, batches=(2, 4)) if args.tiny else replace(table1("XL", 256), batches=(128, 256, 32))
    pair = Pair.untrained(
        sizes, Sampled("bfloat16" if device.type == "cuda" else "float32", 2.0, args.llamagen), device
    )
    predicted = {} if args.tiny else roofline(sizes.batches)
    for batch in sizes.batches:
        captured = draw_and_report(report, pair, sizes, batch, "tf32", capture=True)
        said = predicted.get(batch, {})
        report.row(
            f"{batch} images: DPAR over LlamaGen, captured, images per second",
            f"{captured['LlamaGen'] / captured['DPAR']:.2f}",
            f"{said['ratio']:.2f}" if said else "",
        )
        if args.llamagen:
            own = partial(own_sampler(args.llamagen, pair.baseline, 2.0), batch)
            own()
            seconds = timed(own, device)[0]
            report.row(f"{batch} images: LlamaGen's own script over ours", f"{seconds / captured['LlamaGen']:.2f}")
    first = sizes.batches[0]
    for precision in ("float32", "bfloat16"):
        draw_and_report(report, pair, sizes, first, precision, capture=True, baseline=False)
    draw_and_report(report, pair, sizes, first, "tf32", capture=False)


def draw_and_report(
    report: Report, pair: Pair, sizes: Sizes, batch: int, precision: Any, *, capture: bool, baseline: bool = True
) -> dict[str, float]:
    """Seconds of a batch of each model, each in a row as milliseconds per token."""
    device, request, found = pair.networks.device, request_of(batch, sizes, pair.networks.device), {}
    entropy_model = pair.networks.entropy_model
    assert entropy_model is not None
    entropy_model = entropy_weights(entropy_model.float(), precision)
    settings = replace(pair.draw, entropy_precision=precision)
    for name, model in (("DPAR", pair.networks.model), ("LlamaGen", pair.baseline))[: 1 + baseline]:
        store = GraphStore() if capture else None
        draw = partial(sample, model, entropy_model, **request, rule=pair.rule, settings=settings, store=store)
        for _ in range(2 if capture else 1):  # a part is captured when it is called for the second time
            draw()
        seconds = [timed(draw, device) for _ in range(TURNS)]
        found[name] = statistics.median(taken for taken, _ in seconds)
        tokens = model.config.tokens
        how = f"{'captured' if capture else 'launched'}" + (f", entropies in {precision}" if name == "DPAR" else "")
        patches = seconds[0][1].starts.sum(1).float().mean().item()
        report.row(
            f"{batch} images: {name}, {how}, ms per token",
            f"{1000 * found[name] / tokens:.2f}",
            images_per_s=batch / found[name],
            seconds=[taken for taken, _ in seconds],
            patches=patches,
        )
    return found


def roofline(batches: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The counted kernels and bytes of XL at 256 px; nothing where they cannot be had."""
    command = [sys.executable, "-m", "dpar.cli", "bench", "roofline", "--size", "XL", "--resolution", "256", "--json"]
    done = subprocess.run([*command, "--batches", *map(str, batches)], capture_output=True, encoding="utf-8")
    return {row["batch"]: row for row in json.loads(done.stdout)["rows"]} if done.returncode == 0 else {}


def training(size: str, resolution: int, batch: int, accumulate: int) -> Callable[[Report, argparse.Namespace], None]:
    """A part that times steps of a pair, called and then compiled."""

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
            )
            found = train.measure(plan, device, say=lambda line: print(line, file=sys.stderr, flush=True))
            how = "compiled" if compiled else "called"
            report.save(**{how: found})
            report.row(f"{how}: time ratio", f"{found['time_ratio']:.3f}", f"{found['flop_ratio']:.3f} by FLOPs")
            for step in found["steps"]:
                if step["compiled"] == compiled:
                    mfu, memory = step.get("mfu"), step.get("memory_gib")
                    value = f"MFU {mfu:.0%}" if mfu else "MFU unknown"
                    report.row(f"{how}: {step['model']}", value + (f", {memory:.1f} GiB" if memory else ""))

    return part


def real_tokens(report: Report, args: argparse.Namespace) -> None:
    """A minute of training the experiment's DPAR on its own codes: the likelihood, and samples before and after."""
    if args.results is None:
        report.row("training on real tokens", "no --results were given")
        return
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
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one part."""
    flags = argparse.ArgumentParser(prog="gpu_parts", description=__doc__)
    flags.add_argument("part", choices=PARTS)
    flags.add_argument("path", type=Path)
    for name in ("results", "llamagen"):
        flags.add_argument(f"--{name}", type=Path)
    flags.add_argument("--tiny", action="store_true")
    args = flags.parse_args(argv)
    os.environ.setdefault("DPAR_CACHE", str(args.path.with_name("cache")))
    PARTS[args.part](Report(args.path), args)


if __name__ == "__main__":
    main()
