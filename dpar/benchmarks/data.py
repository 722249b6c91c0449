"""Codes on their way from shards to the trainer: writing, decoding and reading, compared with what training consumes.

A store of random codes goes through the writer, the cache and the loader of a real training. Each stage runs in
processes of its own, so that its memory is its own.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float64

from dpar.benchmarks.conditions import conditions
from dpar.data.codes import CodeStore, open_codes
from dpar.data.loader import Batch, batches, sequential
from dpar.data.manifest import Manifest
from dpar.data.shards import CodeMetadata, CodeRows, rows_of_images, write_shard
from dpar.data.workers import cores
from dpar.device import PEAK_BF16
from dpar.experiment.settings import Transformer
from dpar.model.flops import training_gmacs
from dpar.model.variants import model_config
from dpar.paper import NUM_CLASSES, PAPER_PATCHES, VOCAB_SIZE
from dpar.patches.calibration import calibrate
from dpar.patches.rule import PatchRule
from dpar.train.objective import patch_layout
from dpar.workflow.options import AMOUNT, COUNT, Parser

SUFFIX = {"parquet": ".parquet", "webdataset": ".tar"}
SHARD_IMAGES = 1000
BATCH = 32
"""Images a process and step: 8 GPUs share a batch of 256."""

MFU = 0.45
"""Share of a GPU's promised operations that training is held to; a faster training consumes more."""

BAR = 20
"""Times what training consumes that reading must be able to deliver."""

GPUS = 8
EVERY_CORE = "in random order, a process a core"
CARDS = ("A100", "H100")
MODELS = ("DPAR-B", "DPAR-L", "DPAR-XL")


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    flags = Parser(prog="dpar bench data", description=__doc__)
    flags.add_argument("--images", type=COUNT, default=20_000, help="images in the store")
    flags.add_argument("--views", type=COUNT, default=20, help="rows per image")
    flags.add_argument("--resolution", type=int, choices=PAPER_PATCHES, default=256, help="pixels: 256 or 576 tokens")
    flags.add_argument("--format", choices=SUFFIX, default="parquet", help="of the shards")
    flags.add_argument("--seconds", type=AMOUNT, default=3.0, help="of CPU time for each way of reading")
    flags.add_argument("--folder", type=Path, help="where it is all written and deleted (default: a temporary folder)")
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Times everything and prints what was found."""
    args = parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="dpar-bench-", dir=args.folder) as folder:
        found = measure(
            Path(folder),
            images=args.images,
            views=args.views,
            resolution=args.resolution,
            suffix=SUFFIX[args.format],
            seconds=args.seconds,
        )
    print(json.dumps(found, indent=2) if args.json else table(found))


def measure(folder: Path, *, images: int, views: int, resolution: int, suffix: str, seconds: float) -> dict[str, Any]:
    """Rates in rows (samples) per second, of the clock and of CPU time, and memory in MiB, for JSON.

    On a busy machine the rates of the clock say little; those of CPU time hardly change.

    Args:
        folder: empty; shards, manifest and cache stay in it.
        images: in the store; at least 32 a core.
        views: rows per image.
        resolution: pixels, a key of `PAPER_PATCHES`.
        suffix: of the shards.
        seconds: of CPU time that each way of reading is given.
    """
    manifest, processes = folder / "manifest.json", cores()
    found: dict[str, Any] = {
        "write": alone(write, [(folder, images, views, resolution, suffix)]),
        "index": alone(index, [(folder, suffix)]),
        "verify": alone(verify, [(manifest,)]),
        "decode": alone(decode, [(manifest,)]),
    }
    stored = Manifest.load(manifest)
    cache = folder / "cache" / stored.digest

    def reading(processes: int = 1, order: str = "random", patches: float | None = None) -> dict[str, float]:
        how = {"order": order, "patches": patches}
        jobs = [(manifest, seconds, rank, processes, how) for rank in range(processes)]
        return alone(read, jobs)

    found["read"] = {
        "in random order": reading(),
        "in the order stored": reading(order="sequential"),
        "in random order, with patches": reading(patches=PAPER_PATCHES[resolution]),
        EVERY_CORE: reading(processes),
        f"{EVERY_CORE}, with patches": reading(processes, patches=PAPER_PATCHES[resolution]),
    }
    forget(cache)
    found["read"]["in random order, from the disk"] = reading()
    return {
        **found,
        **demand(found["read"][EVERY_CORE], resolution),
        "store": {
            "images": images,
            "views": views,
            "tokens": stored.metadata.length,
            "suffix": suffix,
            "shards": len(stored.shards),
            "shard_bytes_per_row": sum(shard.bytes for shard in stored.shards) / stored.num_rows,
            "cache_bytes_per_row": sum(file.stat().st_size for file in cache.iterdir() if file.suffix != ".json")
            / stored.num_rows,
        },
        "conditions": {"cores": processes, **conditions(torch.device("cpu"))},
    }


def demand(rates: dict[str, float], resolution: int) -> dict[str, Any]:
    """The images that each model takes in a second on each card, and what part of that, and which cores, reading gives.

    Args:
        rates: of reading with every core.
        resolution: pixels, a key of `PAPER_PATCHES`.
    """
    consumed = {
        card: {model: images_consumed(model, resolution, PEAK_BF16[card]) for model in MODELS} for card in CARDS
    }

    def of_each(value: Callable[[float], float]) -> dict[str, dict[str, float]]:
        return {card: {model: value(rate) for model, rate in of.items()} for card, of in consumed.items()}

    return {
        "consumed_per_s": consumed,
        "read_over_consumed": of_each(lambda rate: rates["per_s"] / rate),
        "cores_for_the_bar": of_each(lambda rate: BAR * rate / rates["per_cpu_s"]),
    }


def images_consumed(model: str, resolution: int, peak: float) -> float:
    """Images per second that 8 GPUs train on at an MFU of 45 %.

    Args:
        model: a variant of DPAR, at the paper's mean number of patches.
        resolution: pixels.
        peak: operations per second of one GPU.
    """
    side = resolution // 16
    transformer = Transformer.model_validate({"variant": model})
    config = model_config(transformer, vocab_size=VOCAB_SIZE, grid=(side, side), num_classes=NUM_CLASSES)
    return GPUS * peak * MFU / (2e9 * float(training_gmacs(config, PAPER_PATCHES[resolution])))


Spent = Float64[np.ndarray, "2"]  # seconds of the clock, and of CPU time of all threads of the process
Stage = Callable[..., tuple[int, Spent]]  # rows that were handled, and what it took


def _now() -> Spent:
    return np.array([time.perf_counter(), time.process_time()])


def alone(stage: Stage, jobs: list[tuple]) -> dict[str, float]:
    """`stage` of each job in its own process, all started together: rows per second in all, largest memory of one."""
    with (
        tempfile.TemporaryDirectory() as barrier,
        ProcessPoolExecutor(len(jobs), mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        running = [pool.submit(_watched, stage, job, Path(barrier), len(jobs)) for job in jobs]
        parts = [future.result() for future in running]
    return {
        "per_s": sum(part["per_s"] for part in parts),
        "per_cpu_s": sum(part["per_cpu_s"] for part in parts) / len(parts),
        **{peak: max(part[peak] for part in parts) for peak in ("peak_rss_mib", "peak_anonymous_mib")},
    }


def _watched(stage: Stage, job: tuple, barrier: Path, processes: int) -> dict[str, float]:
    (barrier / str(os.getpid())).touch()
    while len(os.listdir(barrier)) < processes:
        time.sleep(0.001)
    process, done, peaks = psutil.Process(), threading.Event(), {"peak_rss_mib": 0.0, "peak_anonymous_mib": 0.0}

    def watch() -> None:
        while not done.wait(0.02):
            memory = process.memory_info()
            for peak, size in zip(peaks, (memory.rss, memory.rss - memory.shared), strict=True):
                peaks[peak] = max(peaks[peak], size / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        rows, spent = stage(*job)
    finally:
        done.set()
        watcher.join()
    return {"per_s": rows / spent[0], "per_cpu_s": rows / spent[1], **peaks}


def write(folder: Path, images: int, views: int, resolution: int, suffix: str) -> tuple[int, Spent]:
    """Shards of random codes and entropies; the time is that of writing alone."""
    side = resolution // 16
    metadata = CodeMetadata(
        grid=(side, side), vocab_size=VOCAB_SIZE, resolution=resolution, views=views, tokenizer="0" * 64
    )
    scored = metadata.model_copy(update={"entropy_model": "0" * 64})
    rng, spent = np.random.default_rng(0), np.zeros(2)
    for first in range(0, images, SHARD_IMAGES):
        size = min(SHARD_IMAGES, images - first)
        tokens = rng.integers(0, VOCAB_SIZE, (size, views, metadata.length), np.uint16)
        rows = rows_of_images(tokens, np.arange(size, dtype=np.int32) % NUM_CLASSES, first, metadata)
        entropy = rng.standard_normal(rows.tokens.shape, np.float32) + 7
        entropy[:, 0] = np.inf
        rows = CodeRows(**{**vars(rows), "entropy": entropy, "metadata": scored})
        start = _now()
        write_shard(folder / f"{first:09d}{suffix}", rows)
        spent += _now() - start
    return images * views, spent


def index(folder: Path, suffix: str) -> tuple[int, Spent]:
    """The manifest over the shards."""
    start = _now()
    manifest = Manifest.build(sorted(folder.glob(f"*{suffix}")), folder / "manifest.json")
    manifest.save()
    return manifest.num_rows, _now() - start


def verify(manifest: Path) -> tuple[int, Spent]:
    """Every shard compared with the manifest."""
    start = _now()
    stored = Manifest.load(manifest)
    stored.verify()
    return stored.num_rows, _now() - start


def decode(manifest: Path) -> tuple[int, Spent]:
    """The shards decoded into the local cache."""
    start = _now()
    store = open_codes(manifest, cache=manifest.parent / "cache")
    return store.num_images * store.num_views, _now() - start


def read(manifest: Path, seconds: float, rank: int, processes: int, how: dict[str, Any]) -> tuple[int, Spent]:
    """Batches of one of several ranks.

    Args:
        manifest: of a store whose cache is there.
        seconds: of CPU time; on a busy machine as many rows are read as on an idle one.
        rank: this process.
        processes: all that read.
        how: `order`, random or sequential, and `patches`, how many an image has in the mean if they are to be found.
    """
    store = open_codes(manifest, cache=manifest.parent / "cache")
    stream = _stream(store, rank, processes, how["order"])
    rule = _rule(store, how["patches"]) if how["patches"] else None
    rows, start = 0, _now()
    while True:
        batch = next(stream)
        if rule:
            patch_layout(rule, batch)
        rows += len(batch.tokens)
        if (spent := _now() - start)[1] >= seconds:
            return rows, spent


def _stream(store: CodeStore, rank: int, processes: int, order: str) -> Iterator[Batch]:
    if order == "random":
        return batches(store, batch_size=BATCH * processes, seed=0, rank=rank, world_size=processes)
    passes = (sequential(store, BATCH, view=n % store.num_views, rank=rank, world_size=processes) for n in count())
    return chain.from_iterable(passes)


def _rule(store: CodeStore, patches: float) -> PatchRule:
    """Dynamic patches with the paper's limits, of which an image has about as many as in the paper."""
    assert store.entropy is not None
    grid_width, length = store.metadata.grid[1], store.metadata.length
    some = np.array(store.entropy[:200, 0])
    threshold = calibrate(some, length / patches, max_length=4, grid_width=grid_width)
    return PatchRule(grid_width, threshold, max_length=4)


def forget(cache: Path) -> None:
    """Asks the system to drop the pages of the decoded files, so that they are read from the disk again."""
    for path in cache.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(found: dict[str, Any]) -> str:
    """The result of `measure` as a table for people."""
    store = found["store"]
    stages = {name: found[name] for name in ("write", "index", "verify", "decode")} | {
        f"read {name}": row for name, row in found["read"].items()
    }
    lines = [
        f"{store['images']} images x {store['views']} views x {store['tokens']} tokens, {store['suffix']}: "
        f"{store['shard_bytes_per_row']:.0f} bytes per row in shards, {store['cache_bytes_per_row']:.0f} decoded",
        f"{'':<48}{'rows/s':>12}{'rows/CPU s':>12}{'peak MiB':>10}{'of its own':>12}",
    ]
    for name, row in stages.items():
        memory = f"{row['peak_rss_mib']:>10.0f}{row['peak_anonymous_mib']:>12.0f}"
        lines.append(f"{name:<48}{row['per_s']:>12.0f}{row['per_cpu_s']:>12.0f}{memory}")
    lines += ["", f"{'8 GPUs at 45 % MFU consume':<48}{'images/s':>12}{'read / it':>12}{f'cores for {BAR}x':>22}"]
    for card, consumed in found["consumed_per_s"].items():
        for model, rate in consumed.items():
            ratio, needed = (found[name][card][model] for name in ("read_over_consumed", "cores_for_the_bar"))
            lines.append(f"  {model + ', ' + card:<46}{rate:>12.0f}{ratio:>11.0f}x{needed:>22.2f}")
    return "\n".join(lines)
