"""Files are whole or absent."""

import ast
import contextlib
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from dpar import files
from dpar.errors import InputError
from dpar.files import atomic_write, digest, read_json, sha256_file, write_json


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "no space left"), (errno.EACCES, "cannot write")])
def test_a_disk_that_refuses_keeps_the_old_file_and_says_so(tmp_path, number, said):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(InputError, match=said), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise OSError(number, "refused")
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_became_read_only_is_said(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(InputError, match=r"cannot write .*a\.json: Read-only"), atomic_write(tmp_path / "a.json"):
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


def without_encoding(source: str) -> list[str]:
    """The calls in a program that read or write text in whatever encoding the terminal's language has."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [ast.unparse(each) for each in call.args] + [
            f"{each.arg}={ast.unparse(each.value)}" for each in call.keywords
        ]
        places = {
            "read_text": 0,
            "write_text": 1,
            "NamedTemporaryFile": 99,
            "TextIOWrapper": 1,
            "fdopen": 99,
            "open": 99,
        }
        own = name == "write_text" and ast.unparse(call.func) in ("write_text", "files.write_text")  # always UTF-8
        opens_text = name != "open" or (isinstance(call.func, ast.Name) and not any("b" in part for part in given[1:2]))
        told = any(part.startswith("encoding=") for part in given) or len(call.args) > places.get(name, 99)
        if name in places and not own and opens_text and not told:
            found.append(ast.unparse(call))
        if any(part in ("text=True", "universal_newlines=True") for part in given):
            found.append(ast.unparse(call))
    return found


def test_text_is_read_and_written_as_utf_8_whatever_the_language_of_the_terminal():
    assert len(without_encoding("p.read_text(); p.write_text('a'); open(p); open(p, 'w'); run([], text=True)")) == 5
    assert not without_encoding("p.read_text('utf-8'); open(p, 'rb'); open(p, 'w', encoding='utf-8'); tar.open(p)")
    root = Path(__file__).resolve().parents[1]
    sources = sorted(root.glob("dpar/**/*.py"))
    assert len(sources) > 50
    found = {str(path.relative_to(root)): without_encoding(path.read_text("utf-8")) for path in sources}
    assert {path: calls for path, calls in found.items() if calls} == {}
    rules = [line for path in root.glob("workflow/rules/*.smk") for line in path.read_text("utf-8").splitlines()]
    opened = [line for line in rules if re.search(r"read_text\(\)|(?<!P)open\(", line)]
    assert [line for line in opened if not re.search(r'"[ra]b"', line)] == []


class TestSeals:
    def test_a_change_of_any_byte_is_refused_or_harmless_and_a_file_without_a_seal_is_read(self, tmp_path):
        path, value = tmp_path / "x.json", {"a": [1, 2.5, None], "b": {"c": "text"}, "nan": False}
        files.write_json(path, value)
        whole = path.read_bytes()
        for place in range(len(whole)):
            for bit in range(8):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
                with suppress(InputError):
                    assert files.read_json(path, kind=dict) == value, f"bit {bit} of byte {place}"
        path.write_text(json.dumps(value))
        assert files.read_json(path) == value

    def test_white_space_and_order_do_not_matter_and_a_mark_that_is_gone_does(self, tmp_path):
        path = tmp_path / "x.json"
        files.write_json(path, {"a": 1, "b": 2})
        marked = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(marked.items()))))
        assert files.read_json(path) == {"b": 2, "a": 1}
        for mark in (files.SEALED, files.SEAL):
            path.write_text(json.dumps({name: entry for name, entry in marked.items() if name != mark}))
            with pytest.raises(InputError, match=r"x\.json was changed after it was written.*dpar track accept"):
                files.read_json(path)

    def test_keys_that_are_numbers_and_tuples_read_back_whole(self, tmp_path):
        files.write_json(tmp_path / "x.json", {10: (1, 2), 9: "a"})
        assert files.read_json(tmp_path / "x.json") == {"10": [1, 2], "9": "a"}

    def test_a_changed_file_gets_its_seal_again_and_a_whole_one_stays(self, tmp_path):
        path = tmp_path / "x.json"
        files.write_json(path, {"a": 1})
        assert not files.reseal(path)
        path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
        assert files.reseal(path)
        assert files.read_json(path) == {"a": 2}
        path.write_text('{"a": 3}')
        assert not files.reseal(path), "an old file has no seal to mend"

    @pytest.mark.parametrize("text", ["[1]", "3", "null", '"x"'])
    def test_another_value_than_expected_is_named(self, tmp_path, text):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match=r"x\.json holds a JSON"):
            files.read_json(tmp_path / "x.json", kind=dict)

    @pytest.mark.parametrize("take", [lambda v: v["b"], lambda v: v["a"]["c"], lambda v: v["a"].x, lambda v: int("x")])
    def test_a_field_that_is_missing_or_another_is_one_line(self, tmp_path, take):
        with pytest.raises(InputError, match=r"x\.json lacks a field") as caught, files.fields_of(tmp_path / "x.json"):
            take({"a": 1})
        assert "\n" not in str(caught.value)

    def test_lines_of_json_are_read_whole_or_refused(self, tmp_path):
        path = tmp_path / "x.jsonl"
        path.write_text('{"a": 1}\n{"a": 2}\n')
        assert files.read_json_lines(path) == [{"a": 1}, {"a": 2}]
        for damage in (b'{"a": 1}\n{"a"', b"[1]\n", b'{"a": "\xff"}\n'):
            path.write_bytes(damage)
            with pytest.raises(InputError, match=r"x\.jsonl lacks a field"):
                files.read_json_lines(path)


def test_a_folder_where_json_is_expected_is_refused(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match=r"a\.json cannot be read \(Is a directory\)"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be read \(Not a directory\)"):
        files.read_json(tmp_path / "file" / "a.json")


HOLDER = """
import sys
from pathlib import Path
from dpar.files import file_lock
with file_lock(Path(sys.argv[1])) as lock:
    lock.truncate(0)
    print("the holder", file=lock, flush=True)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder_of(path):
    """Another process that holds a lock file until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(tmp_path, monkeypatch):
    files.check_writable(tmp_path, "notes are kept")
    files.check_writable(tmp_path / "absent", "notes are kept")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"nothing can be written in .*, where notes are kept; use a copy in a folder"):
        files.check_writable(tmp_path, "notes are kept")


class TestLocks:
    def test_a_lock_that_cannot_be_written_is_one_line(self, tmp_path):
        (tmp_path / "lock").mkdir()
        refusal = pytest.raises(InputError, match=r"cannot write .*lock: Is a directory; choose a folder")
        with refusal, files.process_lock(tmp_path / "lock", "busy"):
            pass

    def test_another_process_has_it_until_it_dies(self, tmp_path):
        path = tmp_path / "below" / "lock"
        with holder_of(path) as holder:
            assert files.is_locked(path)
            with files.file_lock(path, wait=False) as lock:
                assert lock is None
            with pytest.raises(InputError, match="busy"), files.process_lock(path, "busy"):
                pass
            holder.kill()
            holder.wait()
            assert not files.is_locked(path)
            with files.process_lock(path, "busy"):
                assert files.is_locked(path)
        assert not files.is_locked(path)

    def test_who_waits_is_told_by_whom_it_is_held(self, tmp_path):
        path, told = tmp_path / "lock", []

        def waiting(by):
            told.append(by)
            holder.stdin.close()

        with holder_of(path) as holder, files.file_lock(path, waiting=waiting) as lock:
            assert lock is not None
        assert told == ["the holder"]

    def test_a_process_that_inherits_it_holds_it_on(self, tmp_path):
        path = tmp_path / "lock"
        with files.process_lock(path, "busy") as lock:
            heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
        with heir:
            assert files.is_locked(path)
            heir.stdin.close()
        assert not files.is_locked(path)

    def test_looking_changes_nothing_and_needs_no_right_to_write(self, tmp_path):
        path = tmp_path / "lock"
        with pytest.raises(FileNotFoundError):
            files.is_locked(path)
        path.write_text("process 1 on host\n")
        path.chmod(0o444)
        with open(path) as other:
            fcntl.flock(other, fcntl.LOCK_SH)  # another who looks
            assert not files.is_locked(path)
        assert path.read_text() == "process 1 on host\n"
