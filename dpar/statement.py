"""The statement inside a file of which job made it, so that a file without records still says what it is.

Each output of a running job carries the job's name, such as `compute_metrics[dpar,seed0]`: JSON as `made_by`, which
its seal covers, archives of arrays as their comment, pictures as a text chunk, Parquet and tar in their headers,
Markdown and JSON lines at their end, with the digest of the rest, Markdown also with that of the CSV file next to it.
The `config.json` of a model has the digest of its weights. LaTeX and HTML, which no stage reads, carry none.
"""

import hashlib
import json
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpar.errors import InputError

MADE_BY = "made_by"

_making: dict[str, str] = {}  # absolute paths of the outputs of running jobs -> the job's name
_END_OF_PNG = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_COMMENT = re.compile(rb"\n<!-- made_by (\{.*\}) -->\n\Z")


@contextmanager
def making(name: str, outputs: Iterable[str | Path]) -> Iterator[None]:
    """A block in which what is written to `outputs`, files or folders, says that the job `name` made it."""
    added = {os.path.abspath(path): name for path in outputs}
    _making.update(added)
    try:
        yield
    finally:
        for path in added:
            _making.pop(path, None)


def maker_of(path: str | Path) -> str | None:
    """The running job that `path` is an output of, or lies in one; None outside any job."""
    place = Path(os.path.abspath(path))
    return next((_making[name] for name in map(str, (place, *place.parents)) if name in _making), None)


def statement(path: str | Path) -> dict[str, str]:
    """The statement as a header for the file `path`; empty outside any job."""
    maker = maker_of(path)
    return {} if maker is None else {MADE_BY: maker}


def stamp(written: Path, path: Path) -> None:
    """Adds the statement to the whole file `written`, which is to become `path`, if its format has room for one."""
    maker = maker_of(path)
    if maker is None:
        return
    if path.suffix == ".npz" and zipfile.is_zipfile(written):
        with zipfile.ZipFile(written, "a") as archive:
            archive.comment = json.dumps({MADE_BY: maker}).encode()
    elif path.suffix == ".png":
        _stamp_png(written, maker)
    elif path.suffix == ".md":
        table = path.with_suffix(".csv")
        said = {"job": maker, "sha256": _sha256(written.read_bytes())}
        if maker_of(table) == maker and table.exists():
            said["csv"] = _sha256(table.read_bytes())
        with open(written, "ab") as file:
            file.write(f"\n<!-- made_by {json.dumps(said)} -->\n".encode())
    elif path.suffix == ".jsonl":
        above, last = _lines(written.read_bytes())
        said = {MADE_BY: {"job": maker, "sha256": _sha256(above + json.dumps(last).encode())}}
        written.write_bytes(above + json.dumps(last | said).encode() + b"\n")


def _stamp_png(written: Path, maker: str) -> None:
    with open(written, "r+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(_END_OF_PNG)))
        if file.read() == _END_OF_PNG:
            file.seek(-len(_END_OF_PNG), os.SEEK_END)
            text = b"tEXt" + MADE_BY.encode() + b"\0" + maker.encode("latin-1", "replace")
            file.write(struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + _END_OF_PNG)


def unstamped(markdown: str) -> str:
    """Markdown as people read it, without its statement."""
    return _COMMENT.sub(b"", markdown.encode()).decode()


def stated(path: Path) -> str | None:
    """The job that a file says has made it; None if it says nothing, or is damaged, which its reader will say.

    Raises:
        InputError: Markdown, a CSV file next to it, JSON lines, or weights next to a `config.json` were changed.
    """
    try:
        found = _READ[path.suffix](path)
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, RuntimeError):
        return None
    except (zipfile.BadZipFile, zlib.error, tarfile.TarError):
        return None
    return found if isinstance(found, str) else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _in_json(path: Path) -> str | None:
    return json.loads(path.read_text("utf-8")).get(MADE_BY)


def _in_npz(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.comment)[MADE_BY]


def _in_png(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return getattr(image, "text", {}).get(MADE_BY)


def _in_parquet(path: Path) -> str | None:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).metadata[MADE_BY.encode()].decode()


def _in_tar(path: Path) -> str | None:
    with tarfile.open(path) as archive:
        return archive.pax_headers.get(MADE_BY)


def _in_markdown(path: Path) -> str | None:
    whole = path.read_bytes()
    said = json.loads(_COMMENT.search(whole)[1])  # pyright: ignore[reportOptionalSubscript]  # a TypeError, caught above
    _expect(path, said["sha256"], _sha256(_COMMENT.sub(b"", whole)), said["job"])
    return said["job"]


def _in_csv(path: Path) -> str | None:
    said = json.loads(_COMMENT.search(path.with_suffix(".md").read_bytes())[1])  # pyright: ignore[reportOptionalSubscript]
    _expect(path, said["csv"], _sha256(path.read_bytes()), said["job"])
    return said["job"]


def _in_weights(path: Path) -> str | None:
    config = json.loads(path.with_name("config.json").read_text("utf-8"))
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _expect(path, config["sha256"], found, config[MADE_BY])
    return config[MADE_BY]


def _in_lines(path: Path) -> str | None:
    above, last = _lines(path.read_bytes())
    said = last.pop(MADE_BY)
    _expect(path, said["sha256"], _sha256(above + json.dumps(last).encode()), said["job"])
    return said["job"]


def _lines(whole: bytes) -> tuple[bytes, dict]:
    """The lines above the last one, and the object in that, empty where there is no line."""
    above, end, last = whole.rstrip(b"\n").rpartition(b"\n")
    return above + end, dict(json.loads(last or b"{}"))


def _expect(path: Path, sha256: str, found: str, job: str) -> None:
    if found != sha256:
        meant = "" if path.suffix == ".safetensors" else f"; `dpar track accept {path}` says that it is meant as it is"
        raise InputError(f"{path} is not what {job} left: put it back, or delete it and run again what makes it{meant}")


def restated(path: Path) -> tuple[Path, bytes] | None:
    """A file, and its content with a statement that fits `path`: Markdown, the CSV file next to it, or JSON lines.

    It goes on to name the job that made `path`. None where that is as it was left, or nothing states what it was.
    """
    try:
        stated(path)
        return None
    except InputError:
        pass
    if path.suffix == ".jsonl":
        above, last = _lines(path.read_bytes())
        said = last.pop(MADE_BY) | {"sha256": _sha256(above + json.dumps(last).encode())}
        return path, above + json.dumps(last | {MADE_BY: said}).encode() + b"\n"
    if path.suffix not in (".md", ".csv"):
        return None
    words = path.with_suffix(".md")
    whole = words.read_bytes()
    said = json.loads(_COMMENT.search(whole)[1])  # pyright: ignore[reportOptionalSubscript]  # which `stated` has read
    text = _COMMENT.sub(b"", whole)
    said |= {"csv": _sha256(path.read_bytes())} if path.suffix == ".csv" else {"sha256": _sha256(text)}
    return words, text + f"\n<!-- made_by {json.dumps(said)} -->\n".encode()


_READ = {
    ".json": _in_json, ".npz": _in_npz, ".png": _in_png, ".parquet": _in_parquet, ".tar": _in_tar, ".md": _in_markdown,
    ".csv": _in_csv, ".jsonl": _in_lines, ".safetensors": _in_weights,
}  # fmt: skip
