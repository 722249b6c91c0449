"""Checks of the lines of spools and of manifests, so that their readers can rely on them."""

import json
import math
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

LARGEST = 2**53  # of a step or a time; beyond it JSON's numbers, and databases, differ
Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    """Text that can be written down: half of a letter, which JSON can hold, is none."""
    if not isinstance(value, str):
        return False
    try:
        return bool(value.encode()) or not value
    except UnicodeEncodeError:
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _number(value: Any) -> bool:
    """A number, or NaN or an infinity as `encode_number` writes them."""
    if isinstance(value, str):
        return value in ("nan", "inf", "-inf")
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _inside(value: Any) -> bool:
    """The name of a file in the spool, and nowhere else."""
    path = PurePosixPath(value) if _text(value) else PurePosixPath("/")
    return not path.is_absolute() and ".." not in path.parts and "\0" not in str(path)


def _table(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(_text(key) and check(part) for key, part in value.items())


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _of(**parts: Check) -> Check:
    return lambda value: isinstance(value, dict) and _first_fault(value, parts) is None


def _value(value: Any) -> bool:
    """A setting: any JSON whose text can be written down."""
    inner = _list(_value)(value) or _table(_value)(value)
    return value is None or isinstance(value, (bool, int, float)) or _text(value) or inner


_FIELDS: dict[str, dict[str, Check]] = {
    "start": {
        **dict.fromkeys(("rule", "name", "identity", "experiment", "config"), _text),
        "commit": _or_none(_text),
        "dirty": lambda value: isinstance(value, bool),
        "params": _table(_value),
        "machine": lambda value: _table(_text)(value) and {"host", "user"} <= value.keys(),
        "versions": _table(_text),
        "inputs": _list(_of(path=_text, sha256=_text)),
    },
    "metrics": {"step": _whole, "values": _table(_number)},
    "image": {"key": _text, "step": _whole, "file": _inside},
    "commit": {"step": _whole},
    "summary": {"values": _table(_number)},
    "system": {"values": _table(_number)},
    "tags": {"tags": _table(_text)},
    "note": {"text": _text},
    "figure": {"file": _inside},
    "result": {
        **dict.fromkeys(("table", "cell"), _text),
        "params": _table(_text),
        "metrics": _table(_number),
        "sources": _list(_text),
        "image": _or_none(_inside),
    },
    "end": {"status": lambda value: value in ("FINISHED", "FAILED", "KILLED"), "reason": _or_none(_text)},
}


_ARTEFACT = {
    **dict.fromkeys(("path", "kind", "sha256"), _text),
    "bytes": _whole,
    "files": _list(lambda file: _of(path=_text, bytes=_whole, sha256=_text)(file) and len(file) == 3),
}
MANIFEST_FIELDS = {
    **dict.fromkeys(("rule", "name", "config", "experiment"), _text),
    "commit": _or_none(_text),
    "dirty": lambda value: isinstance(value, bool),
    **dict.fromkeys(("started", "wall_s"), _number),
    "params": _table(_value),
}


def manifest_fault(value: Any) -> str | None:
    """The first thing that a manifest lacks or has of another type."""
    parts = {**MANIFEST_FIELDS, "inputs": _list(_of(**_ARTEFACT)), "outputs": _list(_of(**_ARTEFACT))}
    return _first_fault(value, parts) if isinstance(value, dict) else "rule"


def _first_fault(value: dict[str, Any], parts: dict[str, Check]) -> str | None:
    return next((key for key, check in parts.items() if key not in value or not check(value[key])), None)


def read_event(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The event that a line holds, else None and what is wrong with it."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None, "is no JSON"
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None, "names no event"
    kind = event["event"]
    if kind not in _FIELDS:
        return None, f"has an event of an unknown kind, {kind[:40]!r}"
    wrong = _first_fault(event, {"t": lambda value: _whole(value) and value >= 0, **_FIELDS[kind]})
    return (event, "") if wrong is None else (None, f"({kind}) lacks {wrong!r}, or has it of another type")
