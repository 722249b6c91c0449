"""Files say which job made them, and go on to be read by everybody."""

import io
import json
import zipfile
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dpar.commands import track
from dpar.data.shards import CodeMetadata, read_shard, rows_of_images, write_shard
from dpar.errors import InputError
from dpar.files import atomic_write, is_sealed, read_json, read_json_lines, reseal, write_bytes, write_json, write_text
from dpar.statement import Statement, making, stated, statement_of, unstamped

NAME = "measure[dpar/seed0]"


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(data, "PNG")
    return data.getvalue()


def write_npz(path):
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, a=np.arange(3), b=np.ones((2, 2)))


def shard(path):
    metadata = CodeMetadata(grid=(2, 2), vocab_size=9, resolution=4, views=1, tokenizer="ab")
    write_shard(path, rows_of_images(np.arange(8, dtype=np.uint16).reshape(2, 1, 4), np.array([0, 1]), 0, metadata))


WRITERS = {
    "x.json": lambda path: write_json(path, {"a": [1, 2.5], "b": "text"}),
    "x.npz": write_npz,
    "x.png": lambda path: write_bytes(path, png()),
    "x.md": lambda path: write_text(path, "| a |\n| --- |\n| 1 |\n"),
    "x.jsonl": lambda path: write_text(path, '{"step": 1}\n{"step": 2}\n'),
    "x.parquet": shard,
    "x.tar": shard,
}


@pytest.mark.parametrize("name", WRITERS)
def test_outputs_of_a_job_say_so_in_the_same_bytes_each_time_and_other_files_say_nothing(tmp_path, name):
    paths = [tmp_path / folder / name for folder in ("one", "two", "aside")]
    with making(NAME, [paths[0], paths[1].parent]):  # a file, and the folder of another
        for path in paths:
            WRITERS[name](path)
    assert [stated(path) for path in paths] == [NAME, NAME, None]
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    WRITERS[name](paths[0])
    assert stated(paths[0]) is None, "the job is over"


@pytest.mark.parametrize("name", WRITERS)
def test_damage_of_a_statement_is_no_traceback(tmp_path, name):
    path = tmp_path / name
    with making(NAME, [path]):
        WRITERS[name](path)
    whole = path.read_bytes()
    for end in range(0, len(whole), max(7, len(whole) // 100)):
        path.write_bytes(whole[:end] + bytes([whole[end] ^ 1]) + whole[end + 1 :])
        with suppress(InputError):
            stated(path)
        path.write_bytes(whole[:end])
        with suppress(InputError):
            stated(path)


def test_a_damaged_comment_of_arrays_is_not_none(tmp_path):
    path = tmp_path / "x.npz"
    with making(NAME, [path], {"features/reference.npz": "0" * 64}):
        WRITERS["x.npz"](path)
    whole = path.read_bytes()
    assert statement_of(path) == Statement(NAME, {"features/reference.npz": "0" * 16})
    begin = whole.rindex(b'{"made_by"')
    for changed in (whole[:-1], whole[:begin] + whole[begin:].replace(b"made_by", b"mode_by"), whole[:-1] + b"\x80"):
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"x\.npz has a comment that does not say which job made it.*track accept"):
            stated(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")
    assert stated(path) is None, "there is none"


def test_what_others_read_of_a_file_stays(tmp_path):
    with making(NAME, [tmp_path]):
        for name, write in WRITERS.items():
            write(tmp_path / name)
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5], "b": "text"}
    with np.load(tmp_path / "x.npz") as arrays:
        assert (arrays["a"].tolist(), arrays["b"].shape) == ([0, 1, 2], (2, 2))
    assert Image.open(tmp_path / "x.png").getpixel((1, 1)) == (1, 2, 3)
    assert unstamped((tmp_path / "x.md").read_text()) == "| a |\n| --- |\n| 1 |\n"
    assert read_json_lines(tmp_path / "x.jsonl") == [{"step": 1}, {"step": 2}]
    assert read_shard(tmp_path / "x.tar").tokens.tolist() == read_shard(tmp_path / "x.parquet").tokens.tolist()


def test_a_seal_covers_the_statement_and_a_mended_seal_keeps_it(tmp_path):
    path = tmp_path / "x.json"
    with making(NAME, [path]):
        write_json(path, {"a": 1})
    marked = json.loads(path.read_text())
    for changed in (marked | {"made_by": "another"}, {"made_by": NAME, "a": 1}):
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match="was changed after it was written"):
            read_json(path)
    path.write_text(json.dumps(marked | {"a": 2}))
    assert reseal(path)
    assert (read_json(path), stated(path)) == ({"a": 2}, NAME)
    path.write_text('{"a": 3}')
    assert not is_sealed(path)
    assert not reseal(path)
    assert reseal(path, lost=True)
    assert is_sealed(path)


def test_markdown_and_the_table_next_to_it_are_held_together(tmp_path):
    table, words = tmp_path / "t.csv", tmp_path / "t.md"
    with making(NAME, [table, words]):
        write_text(table, "a,b\n1,2\n")
        write_text(words, "| a | b |\n")
    assert (stated(table), stated(words)) == (NAME, NAME)
    assert pd.read_csv(table).to_dict("list") == {"a": [1], "b": [2]}
    for path in (table, words):
        whole = path.read_text()
        path.write_text(whole.replace("a", "c", 1))
        with pytest.raises(InputError, match=rf"{path.name} is not what measure\[dpar/seed0\] left.*track accept"):
            stated(path)
        track.main(["accept", str(path)])
        assert stated(path) == NAME, "accepted as it is"
        with pytest.raises(InputError, match="nothing to accept"):
            track.main(["accept", str(path)])
    assert unstamped(words.read_text()) == "| c | b |\n"
    words.unlink()
    assert stated(table) is None


@pytest.mark.parametrize("lines", ["", '{"step": 1}\n', '{"step": 1}\n{"step": 2}\n'])
def test_lines_that_were_changed_are_refused(tmp_path, lines):
    path = tmp_path / "x.jsonl"
    with making(NAME, [path]):
        write_text(path, lines)
    assert stated(path) == NAME
    path.write_text('{"step": 3}\n' + path.read_text())
    with pytest.raises(InputError, match=r"x\.jsonl is not what measure.*track accept"):
        stated(path)
    track.main(["accept", str(path)])
    assert stated(path) == NAME
    assert path.read_text().startswith('{"step": 3}\n')


def test_weights_that_were_changed_are_refused_without_a_word_on_accepting_them(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"others")
    with making(NAME, [tmp_path]):
        write_json(tmp_path / "config.json", {"sha256": "0" * 64})
    with pytest.raises(InputError, match=r"model\.safetensors is not what measure\[dpar/seed0\] left") as refusal:
        stated(path)
    assert "accept" not in str(refusal.value), "the network is not loaded with other weights than its description says"
    with pytest.raises(InputError, match="nothing to accept"):
        track.main(["accept", str(path)])
