"""Codes on disk: shards of tokens and entropies, the manifest over them, and the memory-mapped store that is read.

A shard holds every view of a run of images in the order (image, view): `tokens` uint16, `entropy` float32 in nats once
scored, `label`, `image` and `view`, with what they were made from in its header. Two formats say the same: Parquet
(`.parquet`) and WebDataset (`.tar`, one record an image, its views stacked). Both carry a digest of their contents, so
that a damaged shard is refused wherever it is read, and both have the same bytes whenever their rows are the same.

Training reads neither: `open_codes` decodes all shards once into flat files on the local disk, named by the manifest's
digest, and maps them. The process itself then holds four bytes an image (labels); the pages of the maps belong to the
system, which drops them when memory is short.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int16, Int32, UInt16
from pydantic import Field, ValidationError

from dpar.config import Settings
from dpar.data.workers import mapped
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
    writers = {".parquet": _write_parquet, ".tar": _write_tar}
    path = Path(path)
    if path.suffix not in writers:
        raise InputError(f"{path} is no name for a shard; it must end in {' or '.join(writers)}")
    header = json.dumps(rows.metadata.model_dump(mode="json") | {"content": _content(rows)}, sort_keys=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        writers[path.suffix](file, rows, header)


def read_shard(path: str | Path) -> CodeRows:
    """The rows of a shard, checked against the digest of contents that it carries.

    Raises:
        InputError: the shard is missing, truncated, damaged, or not one of ours.
    """
    return _load(Path(path))[0]


def _load(path: Path) -> tuple[CodeRows, str, int]:
    """The rows, the SHA-256 and the bytes of a shard, read from disk once."""
    readers = {".parquet": _read_parquet, ".tar": _read_tar}
    if path.suffix not in readers:
        raise InputError(f"{path} is no shard of codes; shards end in {' or '.join(readers)}")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"the shard {path} is missing; run the stage that makes it again") from None
    try:
        arrays, header = readers[path.suffix](data)
        values = json.loads(header)
        content = values.pop("content")
        rows = CodeRows(**arrays, metadata=CodeMetadata.model_validate(values))
        if content != _content(rows):
            raise ValueError("its contents do not have the digest that it carries")
    except (ValueError, OSError, KeyError, IndexError, TypeError, tarfile.TarError, pa.ArrowException) as error:
        raise InputError(
            f"the shard {path} is damaged or not a shard of codes ({type(error).__name__}: {error}); "
            "delete it and run the same command again"
        ) from error
    return rows, hashlib.sha256(data).hexdigest(), len(data)


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


def _read_parquet(data: bytes) -> tuple[dict[str, Any], str]:
    table = pq.read_table(pa.BufferReader(data))
    header = (table.schema.metadata or {})[_HEADER.encode()].decode()

    def matrix(name: str, dtype: str) -> np.ndarray:
        column = table.column(name).combine_chunks()
        width = column.type.byte_width
        start = column.offset * width
        flat = np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * width]
        return flat.view(dtype).reshape(len(column), width // np.dtype(dtype).itemsize)

    arrays = {
        "images": table.column("image").to_numpy(),
        "views": table.column("view").to_numpy(),
        "labels": table.column("label").to_numpy(),
        "tokens": matrix("tokens", "<u2"),
        "entropy": matrix("entropy", "<f4") if "entropy" in table.column_names else None,
    }
    return arrays, header


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


def _read_tar(data: bytes) -> tuple[dict[str, Any], str]:
    parts: dict[str, list[Any]] = {"cls": [], "tokens.npy": [], "entropy.npy": []}
    images = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            key, suffix = member.name.split(".", 1)
            payload = data[member.offset_data : member.offset_data + member.size]
            if suffix == "cls":
                images.append(int(key))
                parts[suffix].append(int(payload))
            else:
                parts[suffix].append(np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False))
        header = tar.pax_headers[_HEADER]
    views = [len(block) for block in parts["tokens.npy"]]
    arrays = {
        "images": np.repeat(np.array(images, np.int32), views),
        "views": np.concatenate([np.arange(n, dtype=np.int16) for n in views]),
        "labels": np.repeat(np.array(parts["cls"], np.int32), views),
        "tokens": np.concatenate(parts["tokens.npy"]),
        "entropy": np.concatenate(parts["entropy.npy"]) if parts["entropy.npy"] else None,
    }
    return arrays, header


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
        manifest = cls(path, file.metadata, file.shards)
        if file.digest != manifest.digest:
            raise InputError(f"{path} was changed after it was written (digest differs); index the shards again")
        return manifest

    def save(self) -> None:
        """Writes the manifest to its path."""
        file = _ManifestFile(
            metadata=self.metadata, shards=self.shards, images=self.num_images, rows=self.num_rows, digest=self.digest
        )
        write_json(self.path, file.model_dump(mode="json"))

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
            InputError: naming each shard that is missing, truncated, or differs in so much as one byte.
        """
        problems = [p for p in mapped(self._problem, self.shards, threads=_THREADS, ahead=_THREADS) if p]
        if problems:
            raise InputError(f"{self.path}: " + "; ".join(problems) + "; delete these and run the same command again")

    def _problem(self, shard: Shard) -> str | None:
        path = self.path.parent / shard.path
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return f"{path} is missing"
        if size != shard.bytes:
            return f"{path} has {size} bytes, expected {shard.bytes}"
        if sha256 != shard.sha256:
            return f"{path} is damaged: SHA-256 {sha256}, expected {shard.sha256}"
        return None


@dataclass(frozen=True)
class _Described:
    path: Path
    metadata: CodeMetadata
    sha256: str
    bytes: int
    images: int
    first_image: int


def _describe(path: Path) -> _Described:
    rows, sha256, size = _load(path)
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
    if not home.is_dir():
        with _lock(folder / f"{manifest.digest}.lock"):
            if not home.is_dir():
                _decode(manifest, home)
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
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} belongs to another user; set DPAR_CACHE to a folder on the node's own disk")
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds `path` alone; the system lets go of it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _layout(manifest: Manifest) -> Iterable[tuple[str, str, tuple[int, ...]]]:
    shape = (manifest.num_images, manifest.metadata.views, manifest.metadata.length)
    yield "tokens", "<u2", shape
    yield "labels", "<i4", shape[:1]
    if manifest.metadata.entropy_model is not None:
        yield "entropy", "<f4", shape


def _decode(manifest: Manifest, home: Path) -> None:
    """Decodes all shards into the flat files of `home`, which appears when it is complete; run by the lock's holder."""
    partial = home.with_name(f"{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        maps = {}
        for name, dtype, shape in _layout(manifest):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            with open(partial / name, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a crash in the map
            maps[name] = np.memmap(partial / name, dtype, "r+", shape=shape)
        ends = np.cumsum([shard.images for shard in manifest.shards]).tolist()

        def fill(place: tuple[Shard, int]) -> None:
            shard, end = place
            path = manifest.path.parent / shard.path
            rows, sha256, _ = _load(path)
            if sha256 != shard.sha256:
                raise InputError(
                    f"{path} is not the shard of {manifest.path}: SHA-256 {sha256}, expected {shard.sha256}; "
                    "index the shards again"
                )
            images = slice(end - shard.images, end)
            maps["tokens"][images] = rows.tokens.reshape(shard.images, *maps["tokens"].shape[1:])
            maps["labels"][images] = rows.labels[:: manifest.metadata.views]
            if rows.entropy is not None:
                maps["entropy"][images] = rows.entropy.reshape(shard.images, *maps["entropy"].shape[1:])

        for _ in mapped(fill, zip(manifest.shards, ends, strict=True), threads=_THREADS, ahead=_THREADS):
            pass
        for array in maps.values():
            array.flush()
        partial.rename(home)
    except OSError as error:
        need = manifest.num_rows * manifest.metadata.length * (6 if manifest.metadata.entropy_model else 2)
        raise InputError(
            f"cannot decode {manifest.path} into {home.parent} ({error.strerror}): it needs {need / 2**30:.2f} GiB; "
            "delete what is old there, or set DPAR_CACHE to a folder with room on the node's own disk"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
