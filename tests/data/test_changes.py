"""What changed in a run's images since they were indexed."""

import json
import os
import shutil

import pytest

from dpar.data.changes import changes
from dpar.data.images import ImageIndex, open_images
from dpar.files import read_json
from tests.data.samples import folder_of_images, image_bytes, parquet_of_images, sample_image, tar_of_images

LATER = 2_000_000_000  # seconds since 1970


def indexed(tmp_path, kind, path, *, keep=None):
    """A run's folder with the index of a training set, made long after its files."""
    results = tmp_path / "results/run"
    source = open_images(kind, str(path))
    index = ImageIndex.build(source.keep(keep) if keep is not None else source, resolution=8, num_classes=3)
    (results / "index").mkdir(parents=True, exist_ok=True)
    index.save(results / "index/train.json")
    os.utime(results / "index/train.json", (LATER, LATER))
    return results


def test_images_that_are_as_they_were_are_not_mentioned(tmp_path):
    folder_of_images(tmp_path / "x")
    results = indexed(tmp_path, "folder", tmp_path / "x")
    assert list(changes(results)) == []
    assert list(changes(tmp_path / "none")) == []


@pytest.mark.parametrize("old", [False, True])
def test_files_of_a_folder_are_counted_as_new_gone_and_changed(tmp_path, old):
    root = folder_of_images(tmp_path / "x")
    (root / "ant/0.png").write_bytes(image_bytes(sample_image(0)))
    results = indexed(tmp_path, "folder", root)
    path = results / "index/train.json"
    if old:  # as indexes were before they kept sizes
        values = {name: value for name, value in read_json(path).items() if name not in ("sizes", "listed")}
        path.write_text(json.dumps(values))
        os.utime(path, (LATER, LATER))
    for i in (7, 8, 9):
        (root / f"bee/{i}.png").write_bytes(image_bytes(sample_image(i)))
        os.utime(root / f"bee/{i}.png", (LATER + 1, LATER + 1))
    (root / "cat/1.png").unlink()
    (root / "cat/2.png").write_bytes(b"shorter")
    os.utime(root / "ant/1.png", (LATER + 1, LATER + 1))
    (line,) = changes(results)
    expected = "3 new, 1 gone, 1 changed" if old else "3 new, 1 gone, 2 changed"
    assert line.startswith("images of train were indexed at 2033-05-1")
    assert f"files of {root} since then: {expected}; delete {path} to take that in" in line


def test_images_that_were_left_out_are_not_new(tmp_path):
    folder_of_images(tmp_path / "x")
    results = indexed(tmp_path, "folder", tmp_path / "x", keep=[0, 3, 6])
    assert list(changes(results)) == []
    (tmp_path / "x/cat/9.png").write_bytes(b"")
    (line,) = changes(results)
    assert "since then: 1 new; delete" in line


def test_files_of_the_other_sources_are_compared_whole(tmp_path):
    files, labels = [image_bytes(sample_image(i)) for i in range(3)], [0, 1, 2]
    members = {f"{i}.{s}": d for i in range(3) for s, d in (("png", files[i]), ("cls", str(i).encode()))}
    for kind, name, write in (
        ("parquet", "a.parquet", lambda path, n: parquet_of_images(path, files[:n], labels[:n])),
        ("webdataset", "a.tar", lambda path, n: tar_of_images(path, dict(list(members.items())[: 2 * n]))),
    ):
        write(tmp_path / name, 3)
        results = indexed(tmp_path, kind, tmp_path / f"*{name[1:]}")
        assert list(changes(results)) == []
        write(tmp_path / name, 2)
        write(tmp_path / f"b{name[1:]}", 3)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\0")
        (line,) = changes(results)
        assert "since then: 1 new, 1 changed; delete" in line
        for file in (tmp_path / name, tmp_path / f"b{name[1:]}"):
            file.unlink()
        (line,) = changes(results)
        assert "now they cannot be listed: no " in line


def test_splits_that_were_numbered_apart_are_told(tmp_path):
    results = tmp_path / "run"
    for split, classes in (("train", "abc"), ("val", "bcd")):
        source = open_images("folder", str(folder_of_images(tmp_path / split, tuple(classes), each=1)))
        (results / "index").mkdir(parents=True, exist_ok=True)
        ImageIndex.build(source, resolution=8, num_classes=3).save(results / f"index/{split}.json")
    (line,) = changes(results)
    assert line.startswith("3 held-out classes have the numbers of other training classes, such as b that of a")
    assert line.endswith(f"delete {results}/index/val.json to number them anew")
    shutil.copy(results / "index/train.json", results / "index/val.json")
    assert list(changes(results)) == []


def test_paths_count_from_the_folder_that_the_stages_run_in(tmp_path, monkeypatch):
    folder_of_images(tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        results = indexed(tmp_path, "folder", "x")
    assert list(changes(results)) == []
    (tmp_path / "x/cat/1.png").unlink()
    (line,) = changes(results)
    assert "files of x since then: 1 gone" in line


def test_the_runs_own_images_and_damaged_indexes_are_left_to_the_rules(tmp_path):
    (tmp_path / "results/run/images").mkdir(parents=True)
    path = tmp_path / "results/run/images/train.parquet"
    parquet_of_images(path, [image_bytes(sample_image(i)) for i in range(3)], [0, 1, 2])
    results = indexed(tmp_path, "parquet", path)
    path.unlink()
    assert list(changes(results)) == []
    (results / "index/train.json").write_text("{")
    assert list(changes(results)) == []
