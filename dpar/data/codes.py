"""Codes on disk: shards of tokens and entropies, the manifest over them, and the memory-mapped store.

A shard holds every view of a run of images in the order (image, view): `tokens` uint16, `entropy` float32 in nats once
scored, `label`, `image` and `view`, with what they were made from in its header. Two formats say the same: Parquet
(`.parquet`) and WebDataset (`.tar`, one record per image, its views stacked). Both carry a digest of their contents, so
that a damaged shard is refused wherever it is read, and both have the same bytes whenever their rows are the same.

Training reads neither: `open_codes` decodes all shards once, some thousand rows at a time, into flat files on the local
disk, named by the manifest's digest, and maps them. The process itself then holds four bytes per image (labels); the
pages of the maps belong to the system, which drops them when memory is short.
"""

import contextlib
import glob
import itertools
import math
import mmap
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt16

from dpar.data.manifest import THREADS, Manifest, Shard
from dpar.data.shards import CodeMetadata, content_sha256, open_shard, read_blocks
from dpar.data.workers import mapped, reported
from dpar.errors import InputError
from dpar.experiment.settings import EntropyPrecision, Experiment
from dpar.files import file_lock, read_json, sha256_file, write_json

_CONTENTS = "contents.json"  # of a folder of decoded codes: the digest of each file
_READ: dict[Path, list[int]] = {}  # files whose contents this process has found right, with their stamps then


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
        """Views per image (V)."""
        return self.tokens.shape[1]

    def expect_random_order(self) -> None:
        """Turns read-ahead off: from a cold disk it would read a hundred times the bytes asked for."""
        for array in (self.tokens, self.entropy):
            if isinstance(array, np.memmap):
                array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore


def open_codes(
    manifest_path: str | Path,
    *,
    tokenizer: str | None = None,
    entropy_model: str | None = None,
    entropy_precision: EntropyPrecision | None = None,
    resolution: int | None = None,
    vocab_size: int | None = None,
    cache: str | Path | None = None,
) -> CodeStore:
    """The codes under a manifest, decoded once into the local cache; any number of processes may open it at once.

    Args:
        manifest_path: written by `Manifest.save`.
        tokenizer: SHA-256 that the codes must have been made with.
        entropy_model: SHA-256 that the entropies must have been made with.
        entropy_precision: of the products behind them.
        resolution: pixels that the codes must have been made at.
        vocab_size: codes that the tokenizer must have.
        cache: folder of decoded codes; `cache_folder()` by default.

    Raises:
        InputError: the manifest or a shard cannot be used, the codes were made with something else, or the local disk
            is full.
    """
    manifest = Manifest.load(manifest_path)
    manifest.metadata.expect(
        manifest.path,
        tokenizer=tokenizer,
        entropy_model=entropy_model,
        entropy_precision=entropy_precision,
        resolution=resolution,
        vocab_size=vocab_size,
    )
    folder = Path(cache) if cache else cache_folder()
    home = folder / manifest.digest
    if not _is_whole(manifest, home):
        try:
            with file_lock(folder / f"{manifest.digest}.lock"):
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


def open_splits(train: Path, val: Path, *, resolution: int, vocab_size: int) -> tuple[CodeStore, CodeStore]:
    """Codes to learn from, and held-out ones that were made by the same networks.

    Args:
        resolution: pixels that they must have been made at.
        vocab_size: codes that the tokenizer must have.

    Raises:
        InputError: as `open_codes`.
    """
    learned = open_codes(train, resolution=resolution, vocab_size=vocab_size)
    made = learned.metadata
    held_out = open_codes(
        val,
        resolution=resolution,
        tokenizer=made.tokenizer,
        entropy_model=made.entropy_model,
        entropy_precision=made.entropy_precision,
    )
    return learned, held_out


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
    """Whether `home` holds every file as it was decoded: cleaners may have deleted some, and others written to them.

    Contents are read where a file is not the very one that was decoded, once per process.
    """
    try:
        known = read_json(home / _CONTENTS, kind=dict)
        return all(_is_as_decoded(home / name, size, known[name]) for name, size in _sizes(manifest))
    except (InputError, OSError, LookupError, TypeError):
        return False


def _is_as_decoded(path: Path, size: int, known: dict[str, Any]) -> bool:
    stamp = _stamp(path)
    if stamp[0] != size:
        return False
    if stamp == known["stamp"]:
        return True
    if _READ.get(path) != stamp:
        if sha256_file(path) != known["sha256"]:
            return False
        _READ[path] = stamp
    return True


def _stamp(path: Path) -> list[int]:
    """Size, times of the last modification and change (ns), and inode: they change whenever a file does."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


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
        filled = mapped(lambda at: _fill(manifest, partial, *at), places, threads=THREADS, ahead=THREADS)
        for _ in reported(filled, manifest.num_images, "decoded", size=-(-manifest.num_images // len(places))):
            pass
        for name, _ in _sizes(manifest):
            with open(partial / name, "rb") as file:
                os.fsync(file.fileno())
        known = {
            name: {"sha256": sha256_file(partial / name), "stamp": _stamp(partial / name)}
            for name, _ in _sizes(manifest)
        }
        write_json(partial / _CONTENTS, known)
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
        source = stack.enter_context(open_shard(path))
        if (found := content_sha256(source)) != shard.sha256:
            raise InputError(
                f"{path} is not the shard of {manifest.path}: SHA-256 {found}, expected {shard.sha256}; "
                "index the shards again"
            )
        files = {}
        for name, size in _sizes(manifest):
            files[name] = stack.enter_context(open(folder / name, "r+b"))
            files[name].seek(size // manifest.num_images * first_image)
        for block in read_blocks(path, source)[1]:
            block["labels"] = block["labels"][block["views"] == 0]
            for name, file in files.items():
                file.write(np.ascontiguousarray(block[name]).data)


def stored_entropies(experiment: Experiment, manifest: Path) -> Float32[np.ndarray, "N T"]:
    """The entropies of every stored view of every image, mapped from the local disk, one row per view.

    Raises:
        InputError: the codes were not scored or do not fit the experiment.
    """
    store = open_codes(manifest, resolution=experiment.images.resolution, vocab_size=experiment.tokenizer.vocab_size)
    if store.entropy is None:
        raise InputError(f"the codes of {manifest} have no entropies; give the manifest of scored codes, scored/train")
    return store.entropy.reshape(-1, store.metadata.length)
