"""Shards of codes: tokens, entropies and labels of a run of images, as Parquet or WebDataset."""

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int16, Int32, UInt16
from pydantic import Field

from dpar.errors import InputError
from dpar.experiment.settings import EntropyPrecision, Settings
from dpar.files import atomic_write
from dpar.statement import header_for

_HEADER = "dpar"  # key of the header in a Parquet schema and in a tar's global record
_ROW_GROUP = 8192  # rows


class CodeMetadata(Settings):
    """Contents and origin of a shard's rows."""

    grid: tuple[int, int] = Field(description="rows and columns of tokens per image")
    vocab_size: int = Field(gt=0, le=65536)
    resolution: int = Field(gt=0, description="pixels, the side of the tokenized square")
    views: int = Field(gt=0, description="rows per image")
    tokenizer: str = Field(description="SHA-256 of the tokenizer's weights")
    images: str = Field(default="", description="digest of the image index")
    entropy_model: str | None = Field(
        default=None, description="SHA-256 of the entropy model's weights; null = not scored"
    )
    entropy_precision: EntropyPrecision = Field(
        default="float32",
        exclude_if=lambda precision: precision == "float32",
        description="of the products behind the entropies",
    )

    @property
    def length(self) -> int:
        """Tokens per image (T)."""
        return self.grid[0] * self.grid[1]

    def expect(self, where: str | Path, **expected: Any) -> None:
        """Refuses codes whose metadata is not as `expected`; a value of None expects nothing.

        Raises:
            InputError: naming each field that differs, with the value found and the one expected.
        """
        found = {name: getattr(self, name) for name, value in expected.items() if value is not None}
        wrong = [
            f"{name} is {value!r}, expected {expected[name]!r}"
            for name, value in found.items()
            if value != expected[name]
        ]
        if wrong:
            raise InputError(
                f"{where} was made for something else: {'; '.join(wrong)}; "
                "make these codes again with the present tokenizer and settings"
            )


@dataclass(frozen=True)
class CodeRows:
    """The rows of one shard in the order (image, view), every view of each image.

    Raises:
        ValueError: the arrays do not fit one another or the metadata.
    """

    tokens: UInt16[np.ndarray, "N T"]
    entropy: Float32[np.ndarray, "N T"] | None  # nats, +inf at token 0
    labels: Int32[np.ndarray, "N"]
    images: Int32[np.ndarray, "N"]
    views: Int16[np.ndarray, "N"]
    metadata: CodeMetadata

    def __post_init__(self) -> None:
        meta, rows = self.metadata, len(self.tokens)
        shapes = [
            ("tokens", self.tokens, np.uint16, (rows, meta.length)),
            ("labels", self.labels, np.int32, (rows,)),
            ("images", self.images, np.int32, (rows,)),
            ("views", self.views, np.int16, (rows,)),
        ]
        if (self.entropy is None) != (meta.entropy_model is None):
            raise ValueError("entropies and the digest of the entropy model come together or not at all")
        if self.entropy is not None:
            shapes.append(("entropy", self.entropy, np.float32, (rows, meta.length)))
        for name, array, dtype, shape in shapes:
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
        if not rows or rows % meta.views:
            raise ValueError(f"{rows} rows are not all of {meta.views} views of one or more images")
        first, count = self.images[0], rows // meta.views
        if not np.array_equal(self.images, np.repeat(np.arange(first, first + count), meta.views)):
            raise ValueError("images are not consecutive, each with all its views")
        if not np.array_equal(self.views, np.tile(np.arange(meta.views), count)):
            raise ValueError(f"views do not count from 0 to {meta.views - 1} for each image")
        if first < 0 or self.labels.min() < 0 or np.ptp(self.labels.reshape(count, meta.views), axis=1).any():
            raise ValueError("labels or image numbers are negative, or the views of an image differ in label")
        if int(self.tokens.max()) >= meta.vocab_size:
            raise ValueError(f"token {self.tokens.max()} is not below the vocabulary size {meta.vocab_size}")
        if self.entropy is not None and not (
            np.isposinf(self.entropy[:, 0]).all() and np.isfinite(self.entropy[:, 1:]).all()
        ):
            raise ValueError("entropies must be +inf at token 0 and finite elsewhere")

    @property
    def num_images(self) -> int:
        """Images in the shard."""
        return len(self.tokens) // self.metadata.views


def rows_of_images(
    tokens: UInt16[np.ndarray, "I V T"], labels: Int32[np.ndarray, "I"], first_image: int, metadata: CodeMetadata
) -> CodeRows:
    """The rows of consecutive images, not yet scored, numbered from `first_image`."""
    count, views, length = tokens.shape
    return CodeRows(
        tokens=np.ascontiguousarray(tokens, np.uint16).reshape(count * views, length),
        entropy=None,
        labels=np.repeat(np.asarray(labels, np.int32), views),
        images=np.repeat(np.arange(first_image, first_image + count, dtype=np.int32), views),
        views=np.tile(np.arange(views, dtype=np.int16), count),
        metadata=metadata,
    )


def write_shard(path: str | Path, rows: CodeRows) -> None:
    """Writes `rows` to `path` whole or not at all, as Parquet or WebDataset by its suffix.

    Equal rows give equal bytes, of the same job.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise InputError(f"{path} is no name for a shard; it must end in {' or '.join(FORMATS)}")
    header = json.dumps(rows.metadata.model_dump(mode="json") | {"content": _content(rows)}, sort_keys=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        FORMATS[path.suffix].write(file, rows, {_HEADER: header} | header_for(path))


def read_shard(path: str | Path) -> CodeRows:
    """The rows of a shard, checked against the digest of contents that it carries.

    Raises:
        InputError: the shard is missing, truncated, damaged, or not one of ours.
    """
    with open_shard(Path(path)) as file:
        return read_rows(Path(path), file)


_Block = dict[str, np.ndarray]  # some consecutive rows: the arrays of `CodeRows` by name, as far as there are any


# what pyarrow, tarfile and numpy raise for files that are cut off, damaged or no shards
_UNUSABLE = (
    ValueError, OSError, KeyError, IndexError, TypeError, OverflowError, SyntaxError, TokenError, tarfile.TarError,
    pa.ArrowException,
)  # fmt: skip


@contextmanager
def open_shard(path: Path) -> Iterator[io.BufferedReader]:
    """A shard's file for reading.

    Raises:
        InputError: the name is not one of a shard, or there is no such file.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path} is no shard of codes; shards end in {' or '.join(FORMATS)}")
    if not path.exists():
        raise InputError(f"the shard {path} is missing; run the stage that makes it again")
    with open(path, "rb") as file:
        yield file


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Says of any error in its block that the shard cannot be used."""
    try:
        yield
    except _UNUSABLE as error:
        raise InputError(
            f"the shard {path} is damaged or not a shard of codes ({type(error).__name__}: {error}); "
            "delete it and run the same command again"
        ) from error


def read_blocks(path: Path, file: io.BufferedReader) -> tuple[str, Iterator[_Block]]:
    """The header of an open shard, and its rows a few at a time: memory does not grow with the shard."""
    file.seek(0)
    with _naming(path):
        header, blocks = FORMATS[path.suffix].read(file)

    def named() -> Iterator[_Block]:
        with _naming(path):
            yield from blocks

    return header, named()


def read_rows(path: Path, file: io.BufferedReader) -> CodeRows:
    """All rows of an open shard, checked."""
    header, blocks = read_blocks(path, file)
    parts = list(blocks)
    with _naming(path):
        arrays = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
        values = json.loads(header)
        content = values.pop("content")
        rows = CodeRows(**{"entropy": None, **arrays}, metadata=CodeMetadata.model_validate(values))
        if content != _content(rows):
            raise ValueError("its contents do not have the digest that it carries")
        return rows


def content_sha256(file: io.BufferedReader) -> str:
    """The SHA-256 of an open file, from its place to its end."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def _content(rows: CodeRows) -> str:
    """SHA-256 of the metadata and the arrays, the same in both formats."""
    sha = hashlib.sha256(json.dumps(rows.metadata.model_dump(mode="json"), sort_keys=True).encode())
    for array in (rows.images, rows.views, rows.labels, rows.tokens, rows.entropy):
        if array is not None:
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _write_parquet(file: io.BufferedWriter, rows: CodeRows, headers: dict[str, str]) -> None:
    columns: dict[str, pa.Array] = {
        "image": pa.array(rows.images),
        "view": pa.array(rows.views),
        "label": pa.array(rows.labels),
    }
    for name, array in (("tokens", rows.tokens), ("entropy", rows.entropy)):
        if array is not None:
            width = array.shape[1] * array.itemsize
            buffers = [None, pa.py_buffer(np.ascontiguousarray(array))]
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), buffers)
    table = pa.table(columns).replace_schema_metadata(headers)
    pq.write_table(
        table, file, compression="zstd", use_dictionary=False, write_statistics=False, row_group_size=_ROW_GROUP
    )


def _read_parquet(file: io.BufferedReader) -> tuple[str, Iterator[_Block]]:
    parquet = pq.ParquetFile(file)
    header = (parquet.schema_arrow.metadata or {})[_HEADER.encode()].decode()

    def matrix(column: pa.ChunkedArray, dtype: str) -> np.ndarray:
        array = column.combine_chunks()
        width = array.type.byte_width
        start = array.offset * width
        flat = np.frombuffer(array.buffers()[1], np.uint8)[start : start + len(array) * width]
        return flat.view(dtype).reshape(len(array), width // np.dtype(dtype).itemsize)

    def block(group: int) -> _Block:
        table = parquet.read_row_group(group)
        rows = {name: table.column(name[:-1]).to_numpy() for name in ("images", "views", "labels")}
        rows["tokens"] = matrix(table.column("tokens"), "<u2")
        if "entropy" in table.column_names:
            rows["entropy"] = matrix(table.column("entropy"), "<f4")
        return rows

    return header, map(block, range(parquet.num_row_groups))


def _write_tar(file: io.BufferedWriter, rows: CodeRows, headers: dict[str, str]) -> None:
    from webdataset.writer import TarWriter  # it imports torch, which readers of shards do without

    views, global_header = rows.metadata.views, tarfile.TarInfo.create_pax_global_header(headers)
    with TarWriter(file, user="", group="", mode=0o644, mtime=0) as tar:
        tar.tarstream.fileobj.write(global_header)
        tar.tarstream.offset += len(global_header)
        for first in range(0, len(rows.tokens), views):
            key, image = {"__key__": f"{rows.images[first]:09d}"}, slice(first, first + views)
            tar.write({**key, "cls": int(rows.labels[first]), "tokens.npy": rows.tokens[image]})
            if rows.entropy is not None:
                tar.write({**key, "entropy.npy": rows.entropy[image]})  # apart, since a record is sorted by its names


def _read_tar(file: io.BufferedReader) -> tuple[str, Iterator[_Block]]:
    tar = tarfile.TarFile(fileobj=file)
    header = tar.pax_headers[_HEADER]

    def block(key: str, members: Iterable[tarfile.TarInfo]) -> _Block:
        tar.members = []  # type: ignore  # every header would be kept
        record = {member.name.split(".", 1)[1]: tar.extractfile(member).read() for member in members}  # type: ignore
        rows = {name: _array(record[f"{name}.npy"]) for name in ("tokens", "entropy") if f"{name}.npy" in record}
        views = len(rows["tokens"])
        rows["images"] = np.full(views, int(key), np.int32)
        rows["views"] = np.arange(views, dtype=np.int16)
        rows["labels"] = np.full(views, int(record["cls"]), np.int32)
        return rows

    return header, itertools.starmap(block, itertools.groupby(tar, lambda member: member.name.split(".", 1)[0]))


def _array(data: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


class _Format(NamedTuple):
    write: Callable[[io.BufferedWriter, CodeRows, dict[str, str]], None]
    read: Callable[[io.BufferedReader], tuple[str, Iterator[_Block]]]


FORMATS = {".parquet": _Format(_write_parquet, _read_parquet), ".tar": _Format(_write_tar, _read_tar)}
