"""Files that are either whole or absent: written aside and renamed; their digests; and locks."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor
from pydantic_core import ValidationError

from dpar.errors import InputError
from dpar.statement import MADE_BY, MADE_OF, fields_for, stamp

SEALED, SEAL = "sealed", "seal"
"""The first and the last key of a JSON object that carries its own checksum."""
EXPORTED = "export.json"
"""The list of an exported model's descriptions, with digests."""
MARKS = (SEALED, MADE_BY, MADE_OF, SEAL)

# Folders with copies, thumbnails and deleted files that file servers and systems make among a user's own.
_MADE_BY_SYSTEMS = {
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "system volume information",
    "__macosx", "lost+found",
}  # fmt: skip

_AGAIN = "delete it and run the stage that makes it again"
_MEANT = (
    "put it back, or delete it and run again what made it; `dpar track accept {path}` says that the change is meant"
)
_RESOLVED = "each `dpar run` writes it anew from the experiment's YAML file; change that, and run again"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary name next to `path`, renamed to it when the block succeeds and removed when it fails.

    What is an output of a running job is given the statement that it is (`dpar.statement`).

    Raises:
        InputError: the disk is full or the folder cannot be written; whatever stood at `path` is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # two writers never share it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        stamp(temporary, path)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise InputError(
                f"no space left while writing {path} ({free / 2**20:.0f} MiB free); "
                "the previous version, if any, is untouched: free some space and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(f"cannot write {path}: {error.strerror}; choose a folder that you may write to") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST) and not path.parent.is_dir():
            raise InputError(f"cannot write {path}: a file is where its folder should be; move that away") from error
        raise
    finally:
        with suppress(OSError):  # a file system that has become read-only refuses this too, and would hide the reason
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes temporary files of killed writers of `path` (a file or a folder of files); for its only writer."""
    leftovers = path.parent.glob(f".{glob.escape(path.name)}.*.partial")
    for leftover in [*leftovers, *path.glob(".*.partial")]:
        leftover.unlink(missing_ok=True)


@contextmanager
def file_lock(
    path: Path, *, wait: bool = True, waiting: Callable[[str], object] = lambda holder: None
) -> Iterator[IO[str] | None]:
    """The open lock file `path`, held until the block has ended and all processes that inherit it; None if it is not.

    All locks are taken here. filelock's own `FileLock` unlocks for the heirs too, keeps the descriptor that they need
    to itself, turns into a file that outlives its process where `flock` is missing, and cannot be looked at without
    being taken (`is_locked`); its `lock_descriptor` locks a file of ours.

    Args:
        wait: whether to wait for a process that holds it; else the block gets None.
        waiting: told what the holder wrote into the file, if it has not let go after half a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8", errors="replace") as lock:
        held = lock_descriptor(lock.fileno(), blocking=False)
        for _ in range(10 if wait else 0):  # somebody may just look
            if held:
                break
            time.sleep(0.05)
            held = lock_descriptor(lock.fileno(), blocking=False)
        if wait and not held:
            lock.seek(0)
            waiting(lock.read(200).strip() or "unknown")
            held = lock_descriptor(lock.fileno())
        yield lock if held else None


@contextmanager
def process_lock(path: Path, refusal: str) -> Iterator[IO[str]]:
    """The lock file `path`, held as by `file_lock`.

    Raises:
        InputError: `refusal`; another process holds it. Or it cannot be written.
    """
    with ExitStack() as held:
        try:
            lock = held.enter_context(file_lock(path, wait=False))
        except OSError as error:
            advice = "choose a folder that you may write to and that has room, or copy this one there"
            raise InputError(f"cannot write {path}: {error.strerror}; {advice}") from error
        if lock is None:
            raise InputError(refusal)
        yield lock


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file `path`, which may be another's to write.

    Raises:
        OSError: it is missing, another's to read, or cannot be locked where it is.
    """
    with open(path, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
        except BlockingIOError:
            return True
    return False


def check_writable(folder: Path, why: str) -> None:
    """Refuses a folder, if it is there, in which nothing can be written.

    Args:
        why: something has to be, in words.

    Raises:
        InputError: as said.
    """
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise InputError(f"nothing can be written in {folder}, where {why}; use a copy in a folder that you may change")


def check_spared(output: Path, *inputs: str | Path) -> None:
    """Refuses an output that would take the place of an input: of the same file, or of one in a folder or a pattern.

    Raises:
        InputError: as said.
    """
    for given in inputs if output.exists() else ():
        path = os.path.expanduser(given)
        found = matching(path)
        inside = os.path.isdir(path) and output.resolve().is_relative_to(Path(path).resolve())
        if inside or any(os.path.samefile(output, file) for file in found if os.path.exists(file)):
            raise InputError(f"{output} would be written over what is read ({given}); give the output another name")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's own: it begins with a dot, or a system is known to make it."""
    return name[:1] == "." or name.lower() in _MADE_BY_SYSTEMS


def lies_hidden(path: str) -> bool:
    """Whether a file, or a folder that the path names above it, is hidden (`is_hidden`)."""
    return any(is_hidden(part) for part in path.split("/") if part not in (".", ".."))


def matching(path: str) -> list[str]:
    """The thing of this very name, or all that fits a pattern, sorted; `**` is folders of any depth, each one once.

    What is hidden (`is_hidden`) fits a pattern only where that names it.
    """
    path = os.path.expanduser(path)
    if os.path.lexists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True), key=lambda file: (file.count(os.sep), file))
    systems = _MADE_BY_SYSTEMS - {*path.lower().split(os.sep)}  # of dots `glob` itself knows
    found = [file for file in found if not systems & {*file.lower().split(os.sep)}]
    places = [(os.path.realpath(os.path.dirname(file)), os.path.basename(file)) for file in found]
    return sorted(dict(zip(reversed(places), reversed(found), strict=True)).values())  # by the shortest way


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path` whole or not at all."""
    write_bytes(path, text.encode())


def sealed(value: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`value`, a JSON object, with the marks of a file that carries its own checksum, and of the job that made it.

    Several, so that damage to one of them does not make the file look like an old one, which has none.
    """
    plain = json.loads(json.dumps(unmarked(value)))
    said = {name: said[name] for name in (MADE_BY, MADE_OF) if said and name in said}
    return {SEALED: 1, **said, **plain, SEAL: digest(said | plain)}


def unmarked(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` without the marks of a seal, whether or not it fits."""
    return {name: entry for name, entry in value.items() if name not in MARKS}


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, keys in their own order, to `path` whole or not at all; objects sealed.

    Raises:
        InputError: a number is NaN or infinite.
    """
    try:
        whole = sealed(value, fields_for(path)) if isinstance(value, dict) else value
        text = json.dumps(whole, indent=2, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path} would hold a number that is not finite ({error}): {value!r:.300}") from None
    write_text(path, text + "\n")


def read_json(path: str | Path, *, kind: type = object) -> Any:
    """The JSON value in `path`, without its seal.

    Args:
        kind: what it must be, such as `dict`.

    Raises:
        InputError: the file is missing, is not JSON, is something else, or was changed after it was written.
    """
    value = _parsed(path)
    if isinstance(value, dict) and _is_marked(value):
        format, seal = value.pop(SEALED, None), value.pop(SEAL, None)
        if format != 1 or type(format) is not int or seal != digest(value):
            raise InputError(
                f"{path} was changed after it was written (its `{SEAL}` does not fit the rest): "
                + (_RESOLVED if Path(path).name == "experiment.json" else _MEANT.format(path=path))
            )
        value = unmarked(value)
    if not isinstance(value, kind):
        raise InputError(f"{path} holds a JSON {type(value).__name__}; {_AGAIN}")
    return value


def _is_marked(value: Mapping[str, Any]) -> bool:
    return any(mark in value for mark in MARKS)


def seems_sealed(path: str | Path) -> bool:
    """Whether a file begins as JSON of ours with a seal does, without reading it: files may be long."""
    with suppress(OSError), open(path, "rb") as file:
        return f'"{SEALED}"'.encode() in file.read(64)
    return False


def is_sealed(path: str | Path) -> bool:
    """Whether `path` is a JSON object that carries a checksum, fitting or not."""
    value = _parsed(path)
    return isinstance(value, dict) and _is_marked(value)


def reseal(path: str | Path, *, lost: bool = False) -> bool:
    """Whether `path` was sealed JSON whose content had been changed; if so, its seal is made for the content.

    Args:
        lost: seal it also if it carries no mark of a seal.
    """
    value = _parsed(path)
    if not isinstance(value, dict) or not (lost or _is_marked(value)):
        return False
    if value == (whole := sealed(value, value)):
        return False
    write_text(path, json.dumps(whole, indent=2) + "\n")
    return True


def with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that is there twice all values but the last would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in (other for other, _ in pairs[:i]))
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found


def _parsed(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text("utf-8"), object_pairs_hook=with_each_key_once)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run the stage that makes it, or check the path") from None
    except OSError as error:  # a folder, or below a file
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a file of JSON: check the path") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or numbers with too many digits
        raise InputError(f"{path} is not JSON ({error}); {_AGAIN}") from None


@contextmanager
def fields_of(path: str | Path) -> Iterator[None]:
    """A block that reads fields of `path`: a missing field or one of another type becomes a one-line error.

    Raises:
        InputError: naming the field.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        said = " ".join(_said(error).split())[:200]
        raise InputError(f"{path} lacks a field, or has another than expected ({said}); {_AGAIN}") from error


def _said(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    wrong = error.errors(include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong)


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The JSON object in each line of `path`, without the statement of who made it.

    Raises:
        InputError: the file is missing, or a line is none.
    """
    with fields_of(path):
        lines = [dict(json.loads(line)) for line in Path(path).read_text("utf-8").splitlines()]
        return [line for line in map(unmarked, lines) if line]


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> list[int]:
    """Size, times of the last modification and change (ns), and inode: they change whenever a file does."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
