"""Files are whole or absent."""

import errno
import json
from pathlib import Path

import pytest

from dpar.errors import InputError
from dpar.files import digest, read_json, replacing, sha256_file, write_json


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "no space left"), (errno.EACCES, "cannot write")])
def test_a_disk_that_refuses_keeps_the_old_file_and_says_so(tmp_path, number, said):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(InputError, match=said), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(number, "refused")
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_became_read_only_is_said(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(InputError, match=r"cannot write .*a\.json: Read-only"), replacing(tmp_path / "a.json"):
        refuse()


def test_what_is_not_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match="does not exist"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_json(path)


def test_numbers_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(InputError, match="not finite"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest({"a": 1, "b": 2}) == digest(json.loads('{"b": 2, "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 2})
