"""The statement inside a file of which job made it from what, so that a file without records still says what it is.

Each output of a running job carries the job's name, such as `compute_metrics[dpar,seed0]`, and the digests of the files
of the results folder that the job read: JSON as `made_by` and `made_of`, which its seal covers, archives of arrays as
their comment, pictures as text chunks, Parquet and tar in their headers, Markdown and JSON lines at their end, with the
digest of the rest, Markdown also with that of the CSV file next to it. The `config.json` of a model has the digest of
its weights. LaTeX and HTML, which no stage reads, carry none.
"""

import hashlib
import json
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpar.errors import InputError

MADE_BY, MADE_OF = "made_by", "made_of"
DIGITS = 16
"""Of a SHA-256, as statements give it."""
_MOST = 64  # inputs that are stated; of more there is a list with digests in the results
_WHOLE = 65_536  # bytes at the end of a file in which its statement is looked for

_END_OF_PNG = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_RULE = re.compile(rb'"made_by": ?"([a-z_]+)')
_COMMENT = re.compile(rb"\n<!-- made_by (\{.*\}) -->\n\Z")


@dataclass(frozen=True)
class Statement:
    """A file's own word on its origin.

    Attributes:
        job: which made it.
        inputs: path in the results folder -> first digits of the SHA-256 of what the job read there; older files say
            nothing.
    """

    job: str
    inputs: Mapping[str, str]

    @classmethod
    def of(cls, said: Mapping[str, Any], job: str = MADE_BY) -> "Statement":
        """The statement in the fields of a file.

        Raises:
            LookupError: there is none.
            TypeError: it is none of ours.
        """
        inputs = said.get(MADE_OF, {})
        inputs = json.loads(inputs) if isinstance(inputs, str) else inputs  # in headers all is text
        words = [said[job], *inputs, *inputs.values()]
        if not all(isinstance(word, str) and ".." not in Path(word).parts for word in words):
            raise TypeError(said)
        return cls(said[job], inputs)

    @property
    def fields(self) -> dict[str, Any]:
        """The same as fields of JSON."""
        return {MADE_BY: self.job} | ({MADE_OF: dict(self.inputs)} if self.inputs else {})


_making: dict[str, Statement] = {}  # absolute paths of the outputs of running jobs


@contextmanager
def making(name: str, outputs: Iterable[str | Path], inputs: Mapping[str, str] | None = None) -> Iterator[None]:
    """A block in which what is written to `outputs`, files or folders, says that the job `name` made it.

    Args:
        inputs: path in the results folder -> SHA-256 of what the job reads.
    """
    stated = {path: sha256[:DIGITS] for path, sha256 in list((inputs or {}).items())[:_MOST]}
    added = {os.path.abspath(path): Statement(name, stated) for path in outputs}
    _making.update(added)
    try:
        yield
    finally:
        for path in added:
            _making.pop(path, None)


def statement_for(path: str | Path) -> Statement | None:
    """The statement of the running job that `path` is an output of, or lies in one; None outside any job."""
    place = Path(os.path.abspath(path))
    return next((_making[name] for name in map(str, (place, *place.parents)) if name in _making), None)


def fields_for(path: str | Path) -> dict[str, Any]:
    """The statement as fields of a JSON object that becomes the file `path`; empty outside any job."""
    said = statement_for(path)
    return {} if said is None else said.fields


def header_for(path: str | Path) -> dict[str, str]:
    """The statement as a header for the file `path`; empty outside any job."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields_for(path).items()}


def stamp(written: Path, path: Path) -> None:
    """Adds the statement to the whole file `written`, which is to become `path`, if its format has room for one."""
    said = statement_for(path)
    if said is None:
        return
    if path.suffix == ".npz" and zipfile.is_zipfile(written):
        with zipfile.ZipFile(written, "a") as archive:
            archive.comment = json.dumps(said.fields).encode()
    elif path.suffix == ".png":
        _stamp_png(written, header_for(path))
    elif path.suffix == ".md":
        table = path.with_suffix(".csv")
        fields = _fields_of(said) | {"sha256": _sha256(written.read_bytes())}
        if statement_for(table) == said and table.exists():
            fields["csv"] = _sha256(table.read_bytes())
        with open(written, "ab") as file:
            file.write(f"\n<!-- made_by {json.dumps(fields)} -->\n".encode())
    elif path.suffix == ".jsonl":
        above, last = _lines(written.read_bytes())
        fields = _fields_of(said) | {"sha256": _sha256(above + json.dumps(last).encode())}
        written.write_bytes(above + json.dumps(last | {MADE_BY: fields}).encode() + b"\n")


def _fields_of(said: Statement) -> dict[str, Any]:
    """The statement where other fields stand next to it."""
    return {"job" if name == MADE_BY else name: value for name, value in said.fields.items()}


def _stamp_png(written: Path, header: Mapping[str, str]) -> None:
    with open(written, "r+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(_END_OF_PNG)))
        if file.read() == _END_OF_PNG:
            file.seek(-len(_END_OF_PNG), os.SEEK_END)
            for name, value in header.items():
                text = b"tEXt" + name.encode() + b"\0" + value.encode("latin-1", "replace")
                file.write(struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)))
            file.write(_END_OF_PNG)


def unstamped(markdown: str) -> str:
    """Markdown as people read it, without its statement."""
    return _COMMENT.sub(b"", markdown.encode()).decode()


def stated(path: Path) -> str | None:
    """The job that a file says has made it; None as of `statement_of`."""
    said = statement_of(path)
    return said and said.job


def statement_of(path: Path) -> Statement | None:
    """A file's own word on its origin; None if it says nothing, or is damaged, which its reader will say.

    Raises:
        InputError: Markdown, a CSV file next to it, JSON lines, or weights next to a `config.json` were changed, or
            the comment of an npz is damaged.
    """
    try:
        return _READ[path.suffix](path)
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, RuntimeError):
        return None
    except (zipfile.BadZipFile, zlib.error, tarfile.TarError):
        return None


def may_state(path: Path) -> bool:
    """Whether files of this format carry the statement: that of weights is in the `config.json` next to them."""
    return path.suffix in _READ and path.suffix != ".safetensors"


def rule_stated_in(path: Path) -> str | None:
    """The rule whose job a JSON file says has made it, by its first bytes, without reading it."""
    try:
        with open(path, "rb") as file:
            found = _RULE.search(file.read(512))
    except OSError:
        return None
    return found and found[1].decode()


def seems_to_state(path: Path) -> bool:
    """Whether there is a statement in a file, by its first and last bytes, without reading it."""
    try:
        with open(path, "rb") as file:
            begin = file.read(4096)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _WHOLE))
            return MADE_BY.encode() in begin + file.read()
    except OSError:
        return False


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _in_json(path: Path) -> Statement:
    return Statement.of(json.loads(path.read_text("utf-8")))


def _in_npz(path: Path) -> Statement | None:
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    if not comment:
        return None
    try:
        return Statement.of(json.loads(comment))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{path} has a comment that does not say which job made it ({comment[:40]!r}): it was damaged; put it "
            f"back, or delete it and run again what makes it; `dpar track accept {path}` says that it is meant as it is"
        ) from None


def _in_png(path: Path) -> Statement:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return Statement.of(getattr(image, "text", {}))


def _in_parquet(path: Path) -> Statement:
    import pyarrow.parquet as pq

    return Statement.of({key.decode(): value.decode() for key, value in pq.read_metadata(path).metadata.items()})


def _in_tar(path: Path) -> Statement:
    with tarfile.open(path) as archive:
        return Statement.of(archive.pax_headers)


def _in_markdown(path: Path) -> Statement:
    whole = path.read_bytes()
    said = json.loads(_COMMENT.search(whole)[1])  # pyright: ignore[reportOptionalSubscript]  # a TypeError, caught above
    _expect(path, said["sha256"], _sha256(_COMMENT.sub(b"", whole)), said["job"])
    return Statement.of(said, "job")


def _in_csv(path: Path) -> Statement:
    said = json.loads(_COMMENT.search(path.with_suffix(".md").read_bytes())[1])  # pyright: ignore[reportOptionalSubscript]
    _expect(path, said["csv"], _sha256(path.read_bytes()), said["job"])
    return Statement.of(said, "job")


def _in_weights(path: Path) -> Statement:
    config = json.loads(path.with_name("config.json").read_text("utf-8"))
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _expect(path, config["sha256"], found, config[MADE_BY])
    return Statement.of(config)


def _in_lines(path: Path) -> Statement:
    above, last = _lines(path.read_bytes())
    said = last.pop(MADE_BY)
    _expect(path, said["sha256"], _sha256(above + json.dumps(last).encode()), said["job"])
    return Statement.of(said, "job")


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
