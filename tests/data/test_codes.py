"""Shards, manifests and the mapped store."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from dpar.data import codes, shards
from dpar.data.codes import cache_folder, open_codes
from dpar.data.loader import batches, sequential
from dpar.data.manifest import Manifest
from dpar.data.shards import CodeRows, read_shard, write_shard
from dpar.errors import InputError
from dpar.files import read_json, sha256_file
from tests.data.samples import METADATA, code_rows, code_store
from tests.oracles.data import parquet_rows, webdataset_rows

FORMATS = ("parquet", "tar")


def assert_equal(found, expected):
    assert found.metadata == expected.metadata
    for name in ("tokens", "labels", "images", "views", "entropy"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and np.array_equal(a, b))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("scored", [False, True])
class TestShard:
    def test_is_read_as_it_was_written(self, tmp_path, suffix, scored):
        rows = code_rows(5, first=7, scored=scored)
        write_shard(tmp_path / f"x.{suffix}", rows)
        assert_equal(read_shard(tmp_path / f"x.{suffix}"), rows)

    def test_many_row_groups(self, tmp_path, suffix, scored, monkeypatch):
        monkeypatch.setattr(shards, "_ROW_GROUP", 3)
        rows = code_rows(5, scored=scored)
        write_shard(tmp_path / f"x.{suffix}", rows)
        assert_equal(read_shard(tmp_path / f"x.{suffix}"), rows)

    def test_others_can_read_it(self, tmp_path, suffix, scored):
        rows = code_rows(3, first=4, scored=scored)
        write_shard(tmp_path / f"x.{suffix}", rows)
        read = {"parquet": parquet_rows, "tar": webdataset_rows}[suffix]
        found = list(read(tmp_path / f"x.{suffix}"))
        assert len(found) == len(rows.tokens) > 0
        for i, (image, view, label, tokens, entropy) in enumerate(found):
            assert (image, view, label) == (rows.images[i], rows.views[i], rows.labels[i])
            assert tokens == rows.tokens[i].tolist()
            assert entropy == (rows.entropy[i].tolist() if scored else None)

    def test_equal_rows_give_equal_bytes(self, tmp_path, suffix, scored):
        for name in "ab":
            write_shard(tmp_path / f"{name}.{suffix}", code_rows(4, scored=scored))
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()

    def test_a_flipped_byte_is_never_read_as_other_rows(self, tmp_path, suffix, scored):
        path, rows = tmp_path / f"x.{suffix}", code_rows(2, scored=scored)
        write_shard(path, rows)
        whole = path.read_bytes()
        header_of_an_array = max(0, whole.find(b"{'descr'"))
        refused = []
        for place in [header_of_an_array, *range(0, len(whole), max(1, len(whole) // 150))]:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            try:
                found = read_shard(path)
            except InputError as error:
                refused.append(str(error))
            else:  # a byte that says nothing about the rows, such as padding
                assert_equal(found, rows)
        assert refused
        assert all(str(path) in message for message in refused)

    def test_a_truncated_shard_is_refused(self, tmp_path, suffix, scored):
        path = tmp_path / f"x.{suffix}"
        write_shard(path, code_rows(3, scored=scored))
        whole = path.read_bytes()
        end = len(whole.rstrip(b"\0"))  # a tar ends in zeros that nobody misses
        for length in (0, 1, 100, end // 2, end - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=str(path)):
                read_shard(path)


@pytest.mark.parametrize(("scored", "sha256"), [(False, "c690ca93171048ca"), (True, "6b2ead34434d55f2")])
def test_a_tar_has_the_bytes_that_it_always_had(tmp_path, scored, sha256):
    write_shard(tmp_path / "x.tar", code_rows(3, first=4, scored=scored))
    assert sha256_file(tmp_path / "x.tar").startswith(sha256)


def broken_rows():
    rows = code_rows(2, scored=True)

    def change(**arrays):
        return {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)} | arrays

    def put(array, place, value):
        array = array.copy()
        array[place] = value
        return array

    yield change(tokens=rows.tokens.astype(np.int64)), "tokens is int64"
    yield change(tokens=rows.tokens[:, 1:].copy()), "tokens is"
    yield change(labels=rows.labels[1:]), "labels is"
    yield change(metadata=METADATA), "come together"
    yield change(entropy=None), "come together"
    yield {n: v[:7] if isinstance(v, np.ndarray) else v for n, v in change().items()}, "all of 4 views"
    yield {n: v[:0] if isinstance(v, np.ndarray) else v for n, v in change().items()}, "all of 4 views"
    yield change(images=put(rows.images, 5, 9)), "not consecutive"
    yield change(views=put(rows.views, 2, 0)), "do not count"
    yield change(labels=put(rows.labels, 1, 77)), "differ in label"
    yield change(labels=rows.labels - 100), "negative"
    yield change(tokens=put(rows.tokens, (3, 3), 500)), "token 500"
    yield change(entropy=put(rows.entropy, (1, 0), 1.0)), "entropies must be"
    yield change(entropy=put(rows.entropy, (1, 3), np.nan)), "entropies must be"


@pytest.mark.parametrize(("fields", "message"), list(broken_rows()))
def test_rows_that_do_not_fit_are_refused(fields, message):
    with pytest.raises((ValueError, TypeCheckError)) as caught:
        CodeRows(**fields)
    assert isinstance(caught.value, TypeCheckError) or message in str(caught.value)


def test_a_name_that_is_no_shard_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.parquet or \.tar"):
        write_shard(tmp_path / "x.npy", code_rows())
    with pytest.raises(InputError, match=r"\.parquet or \.tar"):
        read_shard(tmp_path / "x.npy")
    with pytest.raises(InputError, match="is missing"):
        read_shard(tmp_path / "x.parquet")


def test_a_foreign_file_is_refused(tmp_path, shared):
    for name, source in (("x.parquet", "photos64/val.parquet"), ("x.tar", "photos288/photos288-val-000000.tar")):
        (tmp_path / name).write_bytes((shared / "data" / source).read_bytes())
        with pytest.raises(InputError, match="not a shard of codes"):
            read_shard(tmp_path / name)


KILLED_WRITE = """
import os, signal, sys
from tests.data.samples import code_rows
from dpar.data.shards import write_shard
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # the last moment before the file gets its name
write_shard(sys.argv[1], code_rows(3))
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_killed_write_leaves_the_former_shard_or_none(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    for before in (None, code_rows(2, seed=9)):
        if before:
            write_shard(path, before)
        assert subprocess.run([sys.executable, "-c", KILLED_WRITE, path]).returncode == -signal.SIGKILL
        if before:
            assert_equal(read_shard(path), before)
        else:
            assert not path.exists()
    write_shard(path, code_rows(3))
    assert_equal(read_shard(path), code_rows(3))


def test_a_full_disk_leaves_no_shard(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space left"):
        write_shard(tmp_path / "x.parquet", code_rows())
    assert not list(tmp_path.iterdir())


class TestManifest:
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_counts_and_digests(self, tmp_path, suffix):
        manifest, parts = code_store(tmp_path, suffix=suffix, scored=True)
        assert Manifest.load(tmp_path / "manifest.json") == manifest
        assert manifest.num_images == sum(part.num_images for part in parts) == 10
        assert manifest.num_rows == 40
        assert manifest.metadata == parts[0].metadata
        assert [shard.path for shard in manifest.shards] == [f"0000{i}.{suffix}" for i in range(3)]
        manifest.verify()

    def test_does_not_depend_on_the_order_given(self, tmp_path):
        manifest, _ = code_store(tmp_path)
        shards = [tmp_path / shard.path for shard in manifest.shards]
        assert Manifest.build(shards[::-1], manifest.path) == manifest

    def test_its_digest_is_that_of_the_codes_not_of_their_place(self, tmp_path):
        one, _ = code_store(tmp_path / "a")
        same, _ = code_store(tmp_path / "b")
        other, _ = code_store(tmp_path / "c", sizes=(3, 5, 3))
        assert one.digest == same.digest != other.digest

    def test_is_made_of_whole_images_in_a_row(self, tmp_path):
        for name, first, count in (("0", 0, 3), ("1", 3, 2), ("2", 5, 2), ("again", 3, 2)):
            write_shard(tmp_path / f"{name}.parquet", code_rows(count, first))
        with pytest.raises(InputError, match=r"2.parquet begins with image 5, expected 3"):
            Manifest.build([tmp_path / "0.parquet", tmp_path / "2.parquet"], tmp_path / "m.json")
        with pytest.raises(InputError, match="begins with image 3, expected 5"):
            Manifest.build([tmp_path / f"{n}.parquet" for n in ("0", "1", "again", "2")], tmp_path / "m.json")
        with pytest.raises(InputError, match="no shards"):
            Manifest.build([], tmp_path / "m.json")

    @pytest.mark.parametrize(
        ("field", "value"),
        [("tokenizer", "c" * 64), ("resolution", 128), ("vocab_size", 777), ("grid", (3, 2)), ("images", "d" * 64)],
    )
    def test_refuses_shards_of_different_origin(self, tmp_path, field, value):
        write_shard(tmp_path / "0.parquet", code_rows(2))
        other = METADATA.model_copy(update={field: value})
        write_shard(tmp_path / "1.parquet", code_rows(2, 2, metadata=other))
        with pytest.raises(InputError) as caught:
            Manifest.build([tmp_path / "0.parquet", tmp_path / "1.parquet"], tmp_path / "m.json")
        for word in ("1.parquet", field, repr(value), repr(getattr(METADATA, field))):
            assert word in str(caught.value)

    def test_refuses_scored_among_unscored(self, tmp_path):
        write_shard(tmp_path / "0.parquet", code_rows(2))
        write_shard(tmp_path / "1.parquet", code_rows(2, 2, scored=True))
        with pytest.raises(InputError, match=r"1\.parquet is scored"):
            Manifest.build([tmp_path / "0.parquet", tmp_path / "1.parquet"], tmp_path / "m.json")

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_verify_names_the_shard_with_a_flipped_byte(self, tmp_path, suffix):
        manifest, _ = code_store(tmp_path, suffix=suffix)
        path = tmp_path / f"00001.{suffix}"
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(InputError, match=rf"00001.{suffix} is (damaged|not the one that was listed)") as caught:
                manifest.verify()
            assert f"00000.{suffix}" not in str(caught.value)

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_verify_names_all_that_is_wrong(self, tmp_path, suffix):
        manifest, _ = code_store(tmp_path, sizes=(3, 5, 2, 1, 1, 4), suffix=suffix)
        shards = [manifest.path_of(shard) for shard in manifest.shards]
        shards[0].unlink()
        os.truncate(shards[1], shards[1].stat().st_size // 3)
        write_shard(shards[2], code_rows(2, 8, metadata=METADATA.model_copy(update={"tokenizer": "c" * 64})))
        swapped = shards[3].read_bytes(), shards[4].read_bytes()
        shards[4].write_bytes(swapped[0])
        shards[3].write_bytes(swapped[1])
        write_shard(tmp_path / f"00077.{suffix}", code_rows(2, 16))
        with pytest.raises(InputError) as caught:
            manifest.verify()
        found = str(caught.value).splitlines()[1:]
        expected = [
            (0, "is missing"),
            (1, "is damaged"),
            (2, "was made for something else: tokenizer is 'ccc"),
            (3, "is not the one that was listed"),
            (4, "is not the one that was listed"),
            (77, "is not listed"),
        ]
        assert len(found) == len(expected)
        for line, (number, problem) in zip(found, expected, strict=True):
            assert f"{number:05d}.{suffix} {problem}" in line

    def test_no_byte_of_a_manifest_changes_unnoticed(self, tmp_path):
        manifest, _ = code_store(tmp_path, scored=True)
        whole = manifest.path.read_bytes()
        assert len(whole) > 900
        for place in range(len(whole)):
            manifest.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(InputError, match=str(manifest.path)):
                Manifest.load(manifest.path)

    def test_a_changed_manifest_is_refused(self, tmp_path):
        code_store(tmp_path)
        path = tmp_path / "manifest.json"
        values = read_json(path)
        for change in ({"metadata": values["metadata"] | {"tokenizer": "x"}}, {"shards": values["shards"][:1]}):
            path.write_text(json.dumps(values | change))
            with pytest.raises(InputError, match="checksum differs"):
                Manifest.load(path)
        path.write_text(json.dumps({"shards": []}))
        with pytest.raises(InputError, match="no manifest"):
            Manifest.load(path)
        with pytest.raises(InputError, match="does not exist"):
            Manifest.load(tmp_path / "none.json")


class TestStore:
    @pytest.mark.parametrize("suffix", FORMATS)
    @pytest.mark.parametrize("scored", [False, True])
    def test_holds_every_row_by_image_and_view(self, tmp_path, suffix, scored):
        manifest, parts = code_store(tmp_path, suffix=suffix, scored=scored)
        store = open_codes(manifest.path, cache=tmp_path / "cache")
        assert (store.num_images, store.num_views, store.digest) == (10, 4, manifest.digest)
        for part in parts:
            for i, (image, view) in enumerate(zip(part.images, part.views, strict=True)):
                assert np.array_equal(store.tokens[image, view], part.tokens[i])
                assert store.labels[image] == part.labels[i]
                if scored:
                    assert np.array_equal(store.entropy[image, view], part.entropy[i])
        assert (store.entropy is None) == (not scored)
        assert isinstance(store.tokens, np.memmap)  # pages, not memory

    def test_the_system_reads_ahead_unless_the_order_is_random(self, tmp_path):
        manifest, _ = code_store(tmp_path, scored=True)
        store = open_codes(manifest.path, cache=tmp_path / "cache")

        def without_reading_ahead():
            found, name = {}, None
            for line in Path("/proc/self/smaps").read_text().splitlines():
                if f"{tmp_path}/cache" in line:
                    name = Path(line).name
                elif name and line.startswith("VmFlags:"):
                    found[name], name = "rr" in line.split(), None
            return found

        assert without_reading_ahead() == {"tokens": False, "entropy": False}
        next(sequential(store, 4))
        assert without_reading_ahead() == {"tokens": False, "entropy": False}
        next(batches(store, batch_size=4, seed=0))
        assert without_reading_ahead() == {"tokens": True, "entropy": True}

    def test_is_decoded_once(self, tmp_path):
        manifest, parts = code_store(tmp_path)
        open_codes(manifest.path, cache=tmp_path / "cache")
        for shard in manifest.shards:
            (tmp_path / shard.path).unlink()
        store = open_codes(manifest.path, cache=tmp_path / "cache")
        assert np.array_equal(store.tokens.reshape(-1, 6), np.concatenate([part.tokens for part in parts]))

    @pytest.mark.parametrize(
        "expected", [{"tokenizer": "z" * 64}, {"entropy_model": "z" * 64}, {"resolution": 256}, {"vocab_size": 16384}]
    )
    def test_refuses_codes_of_something_else(self, tmp_path, expected):
        manifest, _ = code_store(tmp_path, scored=True)
        ((name, value),) = expected.items()
        with pytest.raises(InputError) as caught:
            open_codes(manifest.path, cache=tmp_path / "cache", **expected)
        for word in (str(manifest.path), name, repr(value), repr(getattr(manifest.metadata, name))):
            assert word in str(caught.value)
        open_codes(manifest.path, cache=tmp_path / "cache", **{name: getattr(manifest.metadata, name)})

    def test_a_shard_exchanged_after_the_manifest_is_refused(self, tmp_path):
        manifest, _ = code_store(tmp_path)
        write_shard(tmp_path / "00001.parquet", code_rows(5, 3, seed=99))
        with pytest.raises(InputError, match=r"00001.parquet is not the shard of .*manifest.json"):
            open_codes(manifest.path, cache=tmp_path / "cache")
        assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"{manifest.digest}.lock"]

    def test_a_full_local_disk_is_said(self, tmp_path, monkeypatch):
        manifest, _ = code_store(tmp_path)

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match="DPAR_CACHE"):
            open_codes(manifest.path, cache=tmp_path / "cache")
        assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"{manifest.digest}.lock"]

    def test_a_folder_that_cannot_be_written_is_said(self, tmp_path):
        manifest, _ = code_store(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"Not a directory.*DPAR_CACHE"):
            open_codes(manifest.path, cache=tmp_path / "file" / "cache")

    def test_a_cache_that_is_there_needs_no_writing(self, tmp_path, monkeypatch):
        manifest, parts = code_store(tmp_path)
        open_codes(manifest.path, cache=tmp_path / "cache")
        monkeypatch.setattr(codes, "file_lock", lambda path: pytest.fail("a folder that is read only has no new lock"))
        assert np.array_equal(open_codes(manifest.path, cache=tmp_path / "cache").labels[:3], parts[0].labels[::4])

    @pytest.mark.parametrize("name", ["tokens", "labels", "entropy"])
    def test_a_cache_with_a_file_missing_or_cut_off_is_made_again(self, tmp_path, name):
        manifest, _ = code_store(tmp_path, scored=True)
        expected = open_codes(manifest.path, cache=tmp_path / "cache")
        path = tmp_path / "cache" / manifest.digest / name
        for break_it in (path.unlink, lambda: os.truncate(path, 5)):
            break_it()
            store = open_codes(manifest.path, cache=tmp_path / "cache")
            assert np.array_equal(getattr(store, name), getattr(expected, name))  # what is mapped stays readable

    @pytest.mark.parametrize("name", ["tokens", "labels", "entropy"])
    def test_a_cache_with_other_bytes_of_the_same_size_is_made_again_and_a_touched_one_stays(self, tmp_path, name):
        manifest, _ = code_store(tmp_path, scored=True)
        expected = np.array(getattr(open_codes(manifest.path, cache=tmp_path / "cache"), name))
        path = tmp_path / "cache" / manifest.digest / name
        inode, whole = path.stat().st_ino, path.read_bytes()
        os.utime(path)
        open_codes(manifest.path, cache=tmp_path / "cache")
        assert path.stat().st_ino == inode
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        os.utime(path, ns=(0, 0))
        store = open_codes(manifest.path, cache=tmp_path / "cache")
        assert np.array_equal(getattr(store, name), expected)
        (path.parent / "contents.json").unlink()  # as of caches from before
        assert np.array_equal(getattr(open_codes(manifest.path, cache=tmp_path / "cache"), name), expected)

    def test_nodes_that_do_not_share_locks_do_not_disturb_one_another(self, tmp_path, monkeypatch):
        manifest, parts = code_store(tmp_path, sizes=(10,))
        cache = tmp_path / "cache"
        for node in ("here", "third"):
            (cache / f"{manifest.digest}.{node}.7.partial").mkdir(parents=True)
        fill = codes._fill

        def slower_than_the_other_node(*arguments):
            monkeypatch.setattr(codes, "_fill", fill)
            monkeypatch.setattr(codes.socket, "gethostname", lambda: "other")
            codes._decode(manifest, cache / manifest.digest)  # holding no lock that is seen here
            fill(*arguments)

        monkeypatch.setattr(codes, "_fill", slower_than_the_other_node)
        monkeypatch.setattr(codes.socket, "gethostname", lambda: "here")
        store = open_codes(manifest.path, cache=cache)
        assert np.array_equal(store.tokens.reshape(-1, 6), parts[0].tokens)
        left = [manifest.digest, f"{manifest.digest}.lock", f"{manifest.digest}.third.7.partial"]
        assert sorted(path.name for path in cache.iterdir()) == left

    def test_a_killed_decoding_is_begun_anew(self, tmp_path):
        manifest, parts = code_store(tmp_path)
        killed = (
            "import os, signal, sys; from dpar.data.codes import open_codes;"
            "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL);"
            "open_codes(sys.argv[1], cache=sys.argv[2])"
        )
        command = [sys.executable, "-c", killed, manifest.path, tmp_path / "cache"]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        assert not (tmp_path / "cache" / manifest.digest).exists()
        store = open_codes(manifest.path, cache=tmp_path / "cache")
        assert np.array_equal(store.tokens.reshape(-1, 6), np.concatenate([part.tokens for part in parts]))
        assert not list((tmp_path / "cache").glob("*.partial"))

    def test_processes_that_start_together_decode_once(self, tmp_path):
        manifest, parts = code_store(tmp_path)
        opening = (
            "import sys; from dpar.data import codes; decode = codes._decode;"
            "codes._decode = lambda *a: (print('decoded'), decode(*a));"
            "print(int(codes.open_codes(sys.argv[1], cache=sys.argv[2]).tokens.sum()))"
        )
        command = [sys.executable, "-c", opening, manifest.path, tmp_path / "cache"]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        lines = [line for process in running for line in process.communicate()[0].split()]
        total = str(sum(int(part.tokens.sum()) for part in parts))
        assert sorted(lines) == sorted(["decoded", total, total, total])

    def test_the_cache_is_where_the_user_says(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "here"))
        assert cache_folder() == tmp_path / "here"
        monkeypatch.delenv("DPAR_CACHE")
        monkeypatch.setattr(codes.tempfile, "gettempdir", lambda: str(tmp_path))
        assert cache_folder() == tmp_path / f"dpar-codes-{os.getuid()}"
        assert cache_folder().stat().st_mode & 0o077 == 0
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        (tmp_path / "dpar-codes-12345").mkdir()
        with pytest.raises(InputError, match="another user"):
            cache_folder()
