"""What can happen to a file: a bit flips, its end is missing, another is in its place, a field is edited."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.workflow.jobs import Job


@dataclass(frozen=True)
class Corruption:
    """New bytes for a file, and in words what was done."""

    path: Path
    what: str
    content: bytes


def flips(path: Path, rng: random.Random, count: int) -> Iterator[Corruption]:
    """One bit of a byte anywhere, each time another."""
    whole = path.read_bytes()
    for place in rng.sample(range(len(whole)), min(count, len(whole))):
        bit = 1 << rng.randrange(8)
        yield Corruption(
            path, f"bit {bit} of byte {place}", whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
        )


def cuts(path: Path, rng: random.Random, count: int) -> Iterator[Corruption]:
    """The file as far as somewhere, and nothing of it."""
    whole = path.read_bytes()
    for end in {0, *(rng.randrange(len(whole)) for _ in range(count))}:
        yield Corruption(path, f"cut after {end} bytes", whole[:end])


def edits(path: Path, rng: random.Random, count: int) -> Iterator[Corruption]:
    """JSON with one of its values replaced by another of the same type, by one of another type, or left out."""
    if path.suffix != ".json":
        return
    places = list(_places(json.loads(path.read_bytes())))
    for place in rng.sample(places, min(count, len(places))):
        for change in ("other", "type", "gone"):
            value = json.loads(path.read_bytes())
            parent = value
            for key in place[:-1]:
                parent = parent[key]
            if change == "gone":
                del parent[place[-1]]
            else:
                parent[place[-1]] = _other(parent[place[-1]], change)
            yield Corruption(path, f"{'.'.join(map(str, place))}: {change}", json.dumps(value, indent=2).encode())


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*above, key)
        yield from _places(child, (*above, key))


def _other(value: Any, change: str) -> Any:
    if change == "type":
        return {"a": 1} if not isinstance(value, dict) else "text"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value[1:] + "0" if value else "0"
    return [] if isinstance(value, list) else {} if isinstance(value, dict) else 1


def swaps(path: Path, others: list[Path], rng: random.Random, count: int) -> Iterator[Corruption]:
    """The content of another file of its kind."""
    whole = path.read_bytes()
    others = [other for other in others if other != path and other.read_bytes() != whole]
    for other in rng.sample(others, min(count, len(others))):
        yield Corruption(path, f"content of {other}", other.read_bytes())


def kind_of(path: Path) -> tuple[str, str]:
    """What a file is, whatever its cell, split, seed or step: its rule's folder and its name without numbers."""
    stem = "".join(letter for letter in path.name if not letter.isdigit())
    return path.parts[2] if len(path.parts) > 3 else "", stem if path.parts[2] not in ("metrics", "figures") else ""


def read_by(job: Job, path: Path) -> bool:
    """Whether the command of `job` names `path` among what it reads, or the folder of the model that it belongs to."""
    words = [w for flag, found in job.flags.items() if flag not in WRITTEN and not unread(job, flag) for w in found]
    return any(path in named_by(job, Path(word)) for word in words)


def named_by(job: Job, given: Path) -> list[Path]:
    """What a stage reads where it is given a path: the file, a model's files, or what lies next to it by its name."""
    found = [given, given / "model.safetensors", given / "config.json"]
    if job.rule == "write_report" and given.suffix == ".csv":
        found.append(given.with_suffix(".md"))
    if job.rule == "compare_gates":
        found.append(given.with_name(f"{given.name}.thresholds.json"))
    if job.rule == "sample_images" and "-gate" in (cell := job.flags["--cell"][0]):
        gate = given / cell.rpartition("-gate")[2]
        found += [gate / "model.safetensors", gate / "config.json", given / f"{gate.name}.thresholds.json"]
    return found


WRITTEN = ("--output", "--csv", "--markdown", "--latex", "--picture", "--history", "--report", "--state")


def unread(job: Job, flag: str) -> bool:
    """Whether the stage is given what it does not look at: it is one command for all cells."""
    if job.rule == "sample_images" and flag == "--entropy-model":
        cell = job.flags["--cell"][0]
        return "gate" in cell or cell.startswith("llamagen")  # a gate places the patches, or there are none
    if job.rule == "train_model" and flag == "--entropy-model":
        return job.flags["--model"] == ["llamagen"]
    return flag == "--experiment"
