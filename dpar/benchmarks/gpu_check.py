"""A check of one GPU in eight minutes: whether it computes what a CPU does, and how fast it trains and draws.

For a machine on which nothing can be installed: this module needs Python alone, and what the parts import and the
machine lacks is read from `--wheels`. Parts run one after another in order of their worth, each in a process of its own
with a time of its own, to which comes what earlier parts have left. A part writes what it has measured so far to a JSON
file, and goes on after a measurement that fails: a part that is cut, a machine that is taken away, or a back end that
does not work there costs only what was under way.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LIMITS = {
    "environment": 30,
    "tests": 70,
    "sampling": 85,
    "training-XL-384": 95,
    "training-L-256": 45,
    "real-tokens": 100,
    "compiled": 55,
    "llamagen": 0,
}
"""Seconds that each part is sure of, in order of their worth; the last has what is left."""

NEEDS = {"real-tokens": "results", "llamagen": "llamagen"}
"""Flags without which a part has nothing to do, and its time is the others'."""

TOTAL = 480
"""Seconds of all parts together."""

ROOT = Path(__file__).resolve().parents[2]


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    flags = argparse.ArgumentParser(prog="dpar bench gpu_check", description=__doc__)
    flags.add_argument("--out", type=Path, default=Path("results/gpu_check"), metavar="DIR", help="of the JSON files")
    flags.add_argument("--parts", choices=LIMITS, nargs="+", default=list(LIMITS), help="default: all")
    flags.add_argument("--seconds", type=int, default=TOTAL, help=f"of all parts together (default: {TOTAL})")
    flags.add_argument("--wheels", type=Path, metavar="DIR", help="packages that the machine lacks, as .whl files")
    flags.add_argument("--results", type=Path, metavar="DIR", help="of an experiment, whose codes `real-tokens` reads")
    flags.add_argument(
        "--llamagen", type=Path, metavar="DIR", help="a checkout of LlamaGen, whose sampler is timed too"
    )
    flags.add_argument("--tiny", action="store_true", help="networks that a CPU has time for: a trial of this command")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts and prints the table; ends with status 1 if one failed. Parts that were cut are no failures."""
    args = parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + args.seconds
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(ROOT), *([unpacked(args.wheels, Path(folder))] if args.wheels else [])]
        parts = [part for part in LIMITS if part in args.parts and (part not in NEEDS or getattr(args, NEEDS[part]))]
        for place, part in enumerate(parts, 1):
            limit = deadline - time.monotonic() - sum(LIMITS[later] for later in parts[place:])
            found[part] = run(part, args, paths, limit)
            print(f"{part}: {found[part]['state']} after {found[part]['seconds']:.0f} s", file=sys.stderr, flush=True)
    text = table(found)
    (args.out / "table.md").write_text(text + "\n", "utf-8")
    print(text)
    if any(result["state"] == "failed" for result in found.values()):
        sys.exit(1)


def unpacked(wheels: Path, folder: Path) -> str:
    """A folder with the contents of all wheels of `wheels`."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return str(folder)


def run(part: str, args: argparse.Namespace, paths: Sequence[str], limit: float) -> dict[str, Any]:
    """The result of a part, also in its JSON file: `state` is done, cut, failed or no time left."""
    path = (args.out / f"{part}.json").resolve()
    path.unlink(missing_ok=True)
    start, state, log = time.monotonic(), "no time left", args.out / f"{part}.log"
    if limit > 1:
        options = ["--tiny"] if args.tiny else []
        for name in ("results", "llamagen"):
            if getattr(args, name):
                options += [f"--{name}", str(getattr(args, name).resolve())]
        command = [sys.executable, "-m", "dpar.benchmarks.gpu_parts", part, str(path), *options]
        known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *known]), "PYTHONUNBUFFERED": "1"}
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )
            try:
                state = "done" if process.wait(limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                state = "cut"
            finally:
                with suppress(ProcessLookupError):  # and what it has started
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    measured = json.loads(path.read_text("utf-8")) if path.exists() else {}
    result = {"part": part, "state": state, "seconds": round(time.monotonic() - start, 1), "limit": round(limit, 1)}
    if state == "failed":
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        result["error"] = lines[-1] if lines else "it said nothing"
    result["measured"] = measured
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return result


def table(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown table for docs/benchmarks.md: a row for each number, next to what was predicted or is wanted."""
    lines = ["| part | what | measured | predicted or wanted |", "| --- | --- | --- | --- |"]
    for part, result in found.items():
        rows = result["measured"].get("rows", [])
        lines += [f"| {part} | {row['what']} | {row['value']} | {row.get('predicted', '')} |" for row in rows]
        if result["state"] != "done" or not rows:
            lines.append(
                f"| {part} | {result['state']} after {result['seconds']:.0f} s | {result.get('error', '')} | |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
