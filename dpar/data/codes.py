"""Codes on disk: shards of tokens and entropies, the manifest over them, and the memory-mapped store that is read.

A shard holds every view of a run of images in the order (image, view): `tokens` uint16, `entropy` float32 in nats once
scored, `label`, `image` and `view`, with what they were made from in its header. Two formats say the same: Parquet
(`.parquet`) and WebDataset (`.tar`, one record an image, its views stacked). Both carry a digest of their contents, so
that a damaged shard is refused wherever it is read, and both have the same bytes whenever their rows are the same.

Training reads neither: `open_codes` decodes all shards once, some thousand rows at a time, into flat files on the local
disk, named by the manifest's digest, and maps them. The process itself then holds four bytes an image (labels); the
pages of the maps belong to the system, which drops them when memory is short.
"""

import contextlib
import fcntl
import glob
import hashlib
import io
import itertools
import json
import math
import mmap
import os
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int16, Int32, UInt16
from pydantic import Field, ValidationError

from dpar.config import Settings
from dpar.data.workers import mapped, reported
from dpar.errors import InputError
from dpar.files import digest, read_json, replacing, write_json

_THREADS = 4  # shards read at a time; hashing and decompression run outside Python's lock
_HEADER = "dpar"  # key of the header in a Parquet schema and in a tar's global record
_ROW_GROUP = 8192  # rows


class CodeMetadata(Settings):
    """What a shard's rows are and what they were made from."""

    grid: tuple[int, int] = Field(description="rows and columns of tokens an image")
    vocab_size: int = Field(gt=0, le=65536)
    resolution: int = Field(gt=0, description="pixels, the side of the tokenized square")
    views: int = Field(gt=0, description="rows an image")
    tokenizer: str = Field(description="SHA-256 of the tokenizer's weights")
    images: str = Field(default="", description="digest of the image index")
    entropy_model: str | None = Field(
        default=None, description="SHA-256 of the entropy model's weights; null = not scored"
    )

    @property
    def length(self) -> int:
        """Tokens an image (T)."""
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

    Equal rows give equal bytes.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise InputError(f"{path} is no name for a shard; it must end in {' or '.join(_FORMATS)}")
    header = json.dumps(rows.metadata.model_dump(mode="json") | {"content": _content(rows)}, sort_keys=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        _FORMATS[path.suffix].write(file, rows, header)


def read_shard(path: str | Path) -> CodeRows:
    """The rows of a shard, checked against the digest of contents that it carries.

    Raises:
        InputError: the shard is missing, truncated, damaged, or not one of ours.
    """
    with _opened(Path(path)) as file:
        return _rows(Path(path), file)


_Block = dict[str, np.ndarray]  # some consecutive rows: the arrays of `CodeRows` by name, as far as there are any

# what pyarrow, tarfile and numpy raise for files that are cut off, damaged or no shards
_UNUSABLE = (
    ValueError, OSError, KeyError, IndexError, TypeError, OverflowError, SyntaxError, TokenError, tarfile.TarError,
    pa.ArrowException,
)  # fmt: skip


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    if path.suffix not in _FORMATS:
        raise InputError(f"{path} is no shard of codes; shards end in {' or '.join(_FORMATS)}")
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


def _blocks(path: Path, file: io.BufferedReader) -> tuple[str, Iterator[_Block]]:
    """The header of an open shard, and its rows a few at a time: memory does not grow with the shard."""
    file.seek(0)
    with _naming(path):
        header, blocks = _FORMATS[path.suffix].read(file)

    def named() -> Iterator[_Block]:
        with _naming(path):
            yield from blocks

    return header, named()


def _rows(path: Path, file: io.BufferedReader) -> CodeRows:
    """All rows of an open shard, checked."""
    header, blocks = _blocks(path, file)
    parts = list(blocks)
    with _naming(path):
        arrays = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
        values = json.loads(header)
        content = values.pop("content")
        rows = CodeRows(**{"entropy": None, **arrays}, metadata=CodeMetadata.model_validate(values))
        if content != _content(rows):
            raise ValueError("its contents do not have the digest that it carries")
        return rows


def _sha256(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _content(rows: CodeRows) -> str:
    """SHA-256 of the metadata and the arrays, the same in both formats."""
    sha = hashlib.sha256(json.dumps(rows.metadata.model_dump(mode="json"), sort_keys=True).encode())
    for array in (rows.images, rows.views, rows.labels, rows.tokens, rows.entropy):
        if array is not None:
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _write_parquet(file: io.BufferedWriter, rows: CodeRows, header: str) -> None:
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
    table = pa.table(columns).replace_schema_metadata({_HEADER: header})
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


def _write_tar(file: io.BufferedWriter, rows: CodeRows, header: str) -> None:
    views = rows.metadata.views
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={_HEADER: header}) as tar:
        for first in range(0, len(rows.tokens), views):
            record = {"cls": str(rows.labels[first]).encode(), "tokens.npy": _npy(rows.tokens[first : first + views])}
            if rows.entropy is not None:
                record["entropy.npy"] = _npy(rows.entropy[first : first + views])
            for suffix, payload in record.items():
                member = tarfile.TarInfo(f"{rows.images[first]:09d}.{suffix}")
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


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
    write: Callable[[io.BufferedWriter, CodeRows, str], None]
    read: Callable[[io.BufferedReader], tuple[str, Iterator[_Block]]]


_FORMATS = {".parquet": _Format(_write_parquet, _read_parquet), ".tar": _Format(_write_tar, _read_tar)}


class Shard(Settings):
    """One shard as the manifest knows it; `path` is relative to the manifest's folder."""

    path: str
    sha256: str
    bytes: int
    images: int


class _ManifestFile(Settings):
    """The manifest as JSON."""

    metadata: CodeMetadata
    shards: tuple[Shard, ...]
    images: int
    rows: int
    digest: str
    checksum: str = Field(default="", description="of all the rest of the file")

    def summed(self) -> "_ManifestFile":
        """The same with the checksum that it should have."""
        checksum = digest(self.model_dump(mode="json", exclude={"checksum"}))
        return self.model_copy(update={"checksum": checksum})


@dataclass(frozen=True)
class Manifest:
    """All shards of a split in the order of their images: counts, digests, and what they were made from."""

    path: Path
    metadata: CodeMetadata
    shards: tuple[Shard, ...]

    @classmethod
    def build(cls, shards: Sequence[str | Path], path: str | Path) -> "Manifest":
        """The manifest, to be saved at `path`, over `shards` in the order of their images; each is read and checked.

        Raises:
            InputError: no shard, a damaged one, shards that differ in what they were made from, or images that are
                missing between them or stored twice.
        """
        path = Path(path)
        described = mapped(_describe, map(Path, shards), threads=_THREADS, ahead=_THREADS)
        found = sorted(described, key=lambda shard: shard.first_image)
        if not found:
            raise InputError(f"no shards for {path}; encode some images first")
        metadata, entries, expected = found[0].metadata, [], 0
        for shard in found:
            shard.metadata.expect(shard.path, **dict(metadata))
            if shard.metadata.entropy_model != metadata.entropy_model:
                raise InputError(f"{shard.path} is scored and {found[0].path} is not; score all shards")
            if shard.first_image != expected:
                raise InputError(
                    f"{shard.path} begins with image {shard.first_image}, expected {expected}: "
                    "a shard is missing before it, or images are stored twice; encode all shards of one index"
                )
            expected += shard.images
            relative = os.path.relpath(shard.path.absolute(), path.parent.absolute())
            entries.append(Shard(path=relative, sha256=shard.sha256, bytes=shard.bytes, images=shard.images))
        return cls(path, metadata, tuple(entries))

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """The manifest in a JSON file.

        Raises:
            InputError: the file is missing, is no manifest, or was changed by hand.
        """
        path = Path(path)
        try:
            file = _ManifestFile.model_validate(read_json(path))
        except ValidationError as error:
            raise InputError(
                f"{path} is no manifest of codes ({error.errors()[0]['msg']}); index the shards again"
            ) from None
        if file != file.summed():
            raise InputError(f"{path} was changed after it was written (its checksum differs); index the shards again")
        return cls(path, file.metadata, file.shards)

    def save(self) -> None:
        """Writes the manifest to its path."""
        file = _ManifestFile(
            metadata=self.metadata, shards=self.shards, images=self.num_images, rows=self.num_rows, digest=self.digest
        )
        write_json(self.path, file.summed().model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """What the codes are, whatever the shards are called."""
        return digest([self.metadata.model_dump(mode="json"), [[s.sha256, s.images] for s in self.shards]])

    @property
    def num_images(self) -> int:
        """Images in all shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def num_rows(self) -> int:
        """Rows in all shards."""
        return self.num_images * self.metadata.views

    def verify(self) -> None:
        """Reads every shard and compares it with the manifest.

        Raises:
            InputError: naming each shard that is missing, truncated, exchanged, not listed, or differs in so much as
                one byte.
        """
        problems = [p for p in mapped(self._problem, self.shards, threads=_THREADS, ahead=_THREADS) if p]
        listed = {self.path_of(shard) for shard in self.shards}
        folders = [folder for folder in {path.parent for path in listed} if folder.is_dir()]
        beside = {path for folder in folders for path in folder.iterdir() if path.suffix in _FORMATS}
        problems += [f"the shard {path} is not listed; delete it" for path in sorted(beside - listed)]
        if problems:
            raise InputError(f"{self.path} and its shards do not agree:\n" + "\n".join(f"  {p}" for p in problems))

    def path_of(self, shard: Shard) -> Path:
        """Where the shard lies."""
        return self.path.parent / shard.path

    def _problem(self, shard: Shard) -> str | None:
        path = self.path_of(shard)
        try:
            with _opened(path) as file:
                if (found := _sha256(file)) == shard.sha256:
                    return None
                _rows(path, file).metadata.expect(path, **dict(self.metadata))
        except InputError as error:
            return str(error)
        return (
            f"the shard {path} is not the one that was listed: SHA-256 {found}, expected {shard.sha256}; "
            "delete it and run the same command again"
        )


@dataclass(frozen=True)
class _Described:
    path: Path
    metadata: CodeMetadata
    sha256: str
    bytes: int
    images: int
    first_image: int


def _describe(path: Path) -> _Described:
    with _opened(path) as file:
        sha256, size = _sha256(file), file.tell()
        rows = _rows(path, file)
    return _Described(path, rows.metadata, sha256, size, rows.num_images, int(rows.images[0]))


@dataclass(frozen=True)
class CodeStore:
    """All codes of a split by (image, view), mapped from the local disk.

    Reading `tokens[image, view]` touches only that row's pages.
    """

    metadata: CodeMetadata
    digest: str  # the manifest's
    tokens: UInt16[np.ndarray, "I V T"]
    labels: Int32[np.ndarray, "I"]
    entropy: Float32[np.ndarray, "I V T"] | None  # nats, +inf at token 0

    @property
    def num_images(self) -> int:
        """Images (I)."""
        return self.tokens.shape[0]

    @property
    def num_views(self) -> int:
        """Views an image (V)."""
        return self.tokens.shape[1]

    def expect_random_order(self) -> None:
        """Tells the system not to read ahead: from a cold disk it would read a hundred times what was asked for."""
        for array in (self.tokens, self.entropy):
            if isinstance(array, np.memmap):
                array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore


def open_codes(
    manifest_path: str | Path,
    *,
    tokenizer: str | None = None,
    entropy_model: str | None = None,
    resolution: int | None = None,
    vocab_size: int | None = None,
    cache: str | Path | None = None,
) -> CodeStore:
    """The codes under a manifest, decoded once into the local cache; any number of processes may open it at once.

    Args:
        manifest_path: written by `Manifest.save`.
        tokenizer: SHA-256 that the codes must have been made with.
        entropy_model: SHA-256 that the entropies must have been made with.
        resolution: pixels that the codes must have been made at.
        vocab_size: codes that the tokenizer must have.
        cache: folder of decoded codes; `cache_folder()` by default.

    Raises:
        InputError: the manifest or a shard cannot be used, the codes were made with something else, or the local disk
            is full.
    """
    manifest = Manifest.load(manifest_path)
    manifest.metadata.expect(
        manifest.path, tokenizer=tokenizer, entropy_model=entropy_model, resolution=resolution, vocab_size=vocab_size
    )
    folder = Path(cache) if cache else cache_folder()
    home = folder / manifest.digest
    if not _is_whole(manifest, home):
        try:
            with _lock(folder / f"{manifest.digest}.lock"):
                if not _is_whole(manifest, home):
                    _decode(manifest, home)
        except OSError as error:
            need = sum(size for _, size in _sizes(manifest)) / 2**30
            raise InputError(
                f"cannot decode {manifest.path} into {folder} ({error.strerror or error}): it needs {need:.2f} GiB; "
                "delete what is old there, or set DPAR_CACHE to a folder of yours with room on the node's own disk"
            ) from error
    maps = {name: np.memmap(home / name, dtype, "r", shape=shape) for name, dtype, shape in _layout(manifest)}
    return CodeStore(
        metadata=manifest.metadata,
        digest=manifest.digest,
        tokens=maps["tokens"],
        labels=np.array(maps["labels"]),
        entropy=maps.get("entropy"),
    )


def cache_folder() -> Path:
    """The folder of decoded codes: `$DPAR_CACHE`, or this user's folder under the system's temporary one.

    It should lie on the node's own disk. Whatever is in it can be deleted while nothing starts; it is made again.

    Raises:
        InputError: the folder in the temporary one belongs to somebody else.
    """
    if named := os.environ.get("DPAR_CACHE"):
        return Path(named)
    folder = Path(tempfile.gettempdir()) / f"dpar-codes-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise InputError(f"{folder} belongs to another user; set DPAR_CACHE to a folder on the node's own disk")
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds `path` alone; the system lets go of it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _layout(manifest: Manifest) -> Iterable[tuple[str, str, tuple[int, ...]]]:
    shape = (manifest.num_images, manifest.metadata.views, manifest.metadata.length)
    yield "tokens", "<u2", shape
    yield "labels", "<i4", shape[:1]
    if manifest.metadata.entropy_model is not None:
        yield "entropy", "<f4", shape


def _sizes(manifest: Manifest) -> Iterator[tuple[str, int]]:
    """The flat files and their bytes."""
    for name, dtype, shape in _layout(manifest):
        yield name, math.prod(shape) * np.dtype(dtype).itemsize


def _is_whole(manifest: Manifest, home: Path) -> bool:
    """Whether `home` holds every file: those who tidy temporary folders may have taken some."""
    return all((home / name).is_file() and (home / name).stat().st_size == size for name, size in _sizes(manifest))


def _decode(manifest: Manifest, home: Path) -> None:
    """Decodes all shards into the flat files of `home`, which appears when it is complete.

    The caller holds the lock. Nodes whose file system locks within a node only write under names of their own; the
    first that is ready wins.
    """
    ours = f"{home.name}.{socket.gethostname()}."
    for left in home.parent.glob(f"{glob.escape(ours)}*.partial"):  # of processes of this node that were killed
        shutil.rmtree(left, ignore_errors=True)
    partial = home.with_name(f"{ours}{os.getpid()}.partial")
    partial.mkdir()
    try:
        for name, size in _sizes(manifest):
            with open(partial / name, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows at once
        ends = itertools.accumulate(shard.images for shard in manifest.shards)
        places = [(shard, end - shard.images) for shard, end in zip(manifest.shards, ends, strict=True)]
        filled = mapped(lambda at: _fill(manifest, partial, *at), places, threads=_THREADS, ahead=_THREADS)
        for _ in reported(filled, manifest.num_images, "decoded", size=-(-manifest.num_images // len(places))):
            pass
        for name, _ in _sizes(manifest):
            with open(partial / name, "rb") as file:
                os.fsync(file.fileno())
        try:
            partial.rename(home)
        except OSError:  # something is there
            if not _is_whole(manifest, home):
                shutil.rmtree(home)
                partial.rename(home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(manifest: Manifest, folder: Path, shard: Shard, first_image: int) -> None:
    """Writes the rows of one shard to their place in the flat files, a block at a time."""
    path = manifest.path_of(shard)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_opened(path))
        if (found := _sha256(source)) != shard.sha256:
            raise InputError(
                f"{path} is not the shard of {manifest.path}: SHA-256 {found}, expected {shard.sha256}; "
                "index the shards again"
            )
        files = {}
        for name, size in _sizes(manifest):
            files[name] = stack.enter_context(open(folder / name, "r+b"))
            files[name].seek(size // manifest.num_images * first_image)
        for block in _blocks(path, source)[1]:
            block["labels"] = block["labels"][block["views"] == 0]
            for name, file in files.items():
                file.write(np.ascontiguousarray(block[name]).data)
