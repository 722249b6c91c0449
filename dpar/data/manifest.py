"""The manifest over the shards of a store."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from dpar.data.shards import FORMATS, CodeMetadata, content_sha256, open_shard, read_rows
from dpar.data.workers import mapped
from dpar.errors import InputError
from dpar.experiment.settings import Settings
from dpar.files import digest, read_json, write_json

THREADS = 4  # shards read at a time; hashing and decompression run outside Python's lock


class Shard(Settings):
    """One shard in the manifest; `path` is relative to the manifest's folder."""

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
    """All shards of a split in the order of their images: counts, digests and origin."""

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
        described = mapped(_describe, map(Path, shards), threads=THREADS, ahead=THREADS)
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
        """Identity of the codes, independent of the names of the shards."""
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
        problems = [p for p in mapped(self._problem, self.shards, threads=THREADS, ahead=THREADS) if p]
        listed = {self.path_of(shard) for shard in self.shards}
        folders = [folder for folder in {path.parent for path in listed} if folder.is_dir()]
        present = {path for folder in folders for path in folder.iterdir() if path.suffix in FORMATS}
        problems += [f"the shard {path} is not listed; delete it" for path in sorted(present - listed)]
        if problems:
            raise InputError(f"{self.path} and its shards do not agree:\n" + "\n".join(f"  {p}" for p in problems))

    def path_of(self, shard: Shard) -> Path:
        """Where the shard lies."""
        return self.path.parent / shard.path

    def _problem(self, shard: Shard) -> str | None:
        path = self.path_of(shard)
        try:
            with open_shard(path) as file:
                if (found := content_sha256(file)) == shard.sha256:
                    return None
                read_rows(path, file).metadata.expect(path, **dict(self.metadata))
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
    with open_shard(path) as file:
        sha256, size = content_sha256(file), file.tell()
        rows = read_rows(path, file)
    return _Described(path, rows.metadata, sha256, size, rows.num_images, int(rows.images[0]))
