import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from dpar import files
from dpar.errors import InputError
from dpar.tracking.hashes import Artefact, HashCache, portable_path, read_artefact


def test_a_file_and_a_folder_have_the_digests_sha256sum_gives(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "b.bin").write_bytes(b"b")
    (folder / "a.json").write_text("{}")
    (folder / ".snakemake_timestamp").touch()
    (folder / ".c.1.partial").touch()
    found = read_artefact(folder, tmp_path)
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in (("a.json", b"{}"), ("b.bin", b"b"))
    ]
    assert found.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (found.path, found.kind, found.bytes, [f.path for f in found.files]) == (
        "model",
        "folder",
        3,
        ["a.json", "b.bin"],
    )
    assert read_artefact(folder / "b.bin", tmp_path).sha256 == hashlib.sha256(b"b").hexdigest()
    assert Artefact.from_json(asdict(found)) == found
    assert HashCache(tmp_path).artefact(folder) == found


def test_what_was_hashed_once_is_not_read_again_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    reads: list[Path] = []
    true_sha256 = files.sha256_file

    def counted(path: str | Path) -> str:
        reads.append(Path(path))
        return true_sha256(path)

    monkeypatch.setattr(files, "sha256_file", counted)
    first = HashCache(tmp_path).artefact(folder)
    assert HashCache(tmp_path).artefact(folder) == first
    assert HashCache(tmp_path).artefact(folder / "weights").sha256 == first.files[0].sha256
    assert len(reads) == 1
    (folder / "weights").write_bytes(b"2")
    os.utime(folder / "weights", ns=(1, 1))
    assert HashCache(tmp_path).artefact(folder).sha256 != first.sha256
    assert len(reads) == 2


def test_a_damaged_cache_is_an_empty_one(tmp_path: Path):
    (tmp_path / "x").write_text("x")
    cache = HashCache(tmp_path)
    found = cache.artefact(tmp_path / "x")
    (entry,) = cache.folder.iterdir()
    for damage in ("{", "[]", "{}"):
        entry.write_text(damage)
        assert HashCache(tmp_path).artefact(tmp_path / "x") == found


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nothing\.bin does not exist"):
        HashCache(tmp_path).artefact(tmp_path / "nothing.bin")


def test_paths_are_relative_inside_the_results_and_absolute_outside(tmp_path: Path):
    assert portable_path(tmp_path / "a" / "b", tmp_path) == "a/b"
    assert portable_path("/elsewhere/c", tmp_path) == "/elsewhere/c"
