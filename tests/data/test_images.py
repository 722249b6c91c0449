"""The index of images, and what all sources have in common."""

import json
from pathlib import Path

import numpy as np
import pytest

from dpar.data.images import ImageIndex, open_images, shared_images
from dpar.errors import InputError
from dpar.files import read_json, write_json
from tests.data.samples import folder_of_images, image_bytes, parquet_of_images, same, sample_image, tar_of_images


def sources(tmp_path, files, labels):
    """The same image files as a folder of their classes, as Parquet and as tars: (source, path, order)."""
    for i, (data, label) in enumerate(zip(files, labels, strict=True)):
        path = tmp_path / "folder" / f"class{label}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    yield "folder", str(tmp_path / "folder"), sorted(range(len(files)), key=lambda i: (labels[i], i))
    half = len(files) // 2
    for name, part in (("a-0", range(half)), ("a-1", range(half, len(files)))):
        parquet_of_images(
            tmp_path / f"{name}.parquet", [files[i] for i in part], [labels[i] for i in part], [f"row{i}" for i in part]
        )
    yield "parquet", str(tmp_path / "a-*.parquet"), range(len(files))
    for name, part in (("b-0.tar", range(half)), ("b-1.tar", range(half, len(files)))):
        members = {}
        for i in part:
            members |= {f"s/{i}.png": files[i], f"s/{i}.cls": str(labels[i]).encode(), f"s/{i}.json": b"{}"}
        tar_of_images(tmp_path / name, members)
    yield "webdataset", str(tmp_path / "b-*.tar"), range(len(files))


def test_every_source_gives_the_same_images(tmp_path):
    labels = [0, 2, 1, 1, 0, 2, 2]
    originals = [sample_image(i) for i in range(len(labels))]
    digests = []
    for kind, path, order in sources(tmp_path, [image_bytes(p) for p in originals], labels):
        source = open_images(kind, path)
        index = ImageIndex.build(source, resolution=8, num_classes=3)
        index.save(tmp_path / f"{kind}.json")
        for found in (source, index, ImageIndex.load(tmp_path / f"{kind}.json")):
            assert len(found) == len(found.keys) == len(set(found.keys)) == 7
            assert found.labels.tolist() == [labels[i] for i in order]
            assert found.labels.dtype == np.int32
            for place in (6, 0, 3, 3, 5, 1, 2, 4):  # in any order
                assert same(found.read(place), originals[order[place]])
        loaded = ImageIndex.load(tmp_path / f"{kind}.json")
        assert (loaded.resolution, loaded.num_classes, loaded.skipped) == (8, 3, [])
        assert loaded.class_counts.tolist() == [2, 2, 3]
        assert loaded.digest == index.digest
        digests.append(index.digest)
    assert len(set(digests)) == 3  # the keys differ


def test_unreadable_images_are_left_out_or_named(tmp_path):
    labels = [0, 1, 1, 0, 0, 1]
    originals = [sample_image(i, 40, 40) for i in range(6)]
    files = [image_bytes(p) for p in originals]
    files[2], files[4] = files[2][: len(files[2]) // 2], b"no image"
    for kind, path, order in sources(tmp_path, files, labels):
        source = open_images(kind, path)
        bad = [source.keys[order.index(i)] if kind == "folder" else source.keys[i] for i in (2, 4)]
        with pytest.raises(InputError, match="2 of 6 images") as caught:
            ImageIndex.build(source, resolution=8, num_classes=2, max_unreadable=0.3)
        for key in bad:
            assert f"{key} (" in str(caught.value)
        index = ImageIndex.build(source, resolution=8, num_classes=2, max_unreadable=0.34)
        assert sorted(entry["key"] for entry in index.skipped) == sorted(bad)
        assert all(entry["reason"] for entry in index.skipped)
        index.save(tmp_path / "index.json")
        kept = [i for i in order if i not in (2, 4)]
        for found in (index, ImageIndex.load(tmp_path / "index.json")):
            assert found.class_counts.tolist() == [2, 2]
            assert all(same(found.read(place), originals[i]) for place, i in enumerate(kept))
        with pytest.raises(InputError, match="cannot be read"):
            source.read(order.index(4))


def test_only_unreadable_images_are_an_error(tmp_path):
    parquet_of_images(tmp_path / "a.parquet", [b"x", None], [0, 0])
    with pytest.raises(InputError, match="the row has no image"):
        ImageIndex.build(
            open_images("parquet", str(tmp_path / "a.parquet")), resolution=8, num_classes=1, max_unreadable=1.0
        )


def test_an_image_that_changed_after_indexing_is_named(tmp_path):
    folder_of_images(tmp_path / "x")
    ImageIndex.build(open_images("folder", str(tmp_path / "x")), resolution=8, num_classes=3).save(tmp_path / "i.json")
    index = ImageIndex.load(tmp_path / "i.json")
    (tmp_path / "x/bee/1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"bee/1\.png"):
        index.read(4)
    (tmp_path / "x/bee/1.png").unlink()
    with pytest.raises(InputError, match=r"bee/1\.png"):
        index.read(4)


def test_another_image_in_an_images_place_is_refused(tmp_path):
    labels, originals = [0, 1, 1, 0], [sample_image(i) for i in range(4)]
    list(sources(tmp_path / "changed", [image_bytes(originals[i]) for i in (0, 2, 1, 3)], labels))
    for kind, path, order in sources(tmp_path / "known", [image_bytes(p) for p in originals], labels):
        ImageIndex.build(open_images(kind, path), resolution=8, num_classes=2).save(tmp_path / "index.json")
        text = json.dumps(read_json(tmp_path / "index.json"))
        (tmp_path / "index.json").write_text(text.replace(str(tmp_path / "known"), str(tmp_path / "changed")))
        index = ImageIndex.load(tmp_path / "index.json")
        for place, number in enumerate(order):
            if number in (0, 3):
                assert same(index.read(place), originals[number])
                continue
            with pytest.raises(InputError, match="changed since it was indexed") as caught:
                index.read(place)
            assert f"image {index.keys[place]} of {tmp_path / 'changed'}" in str(caught.value)


def test_the_digest_is_that_of_the_images(tmp_path):
    def digest():
        return ImageIndex.build(open_images("folder", str(tmp_path / "x")), resolution=8, num_classes=3).digest

    folder_of_images(tmp_path / "x")
    first = digest()
    assert digest() == first
    (tmp_path / "x/cat/2.png").write_bytes(image_bytes(sample_image(77)))
    assert digest() != first


class TestClasses:
    def test_a_label_out_of_range_is_named(self, tmp_path):
        path = str(
            parquet_of_images(tmp_path / "a.parquet", [image_bytes(sample_image(i)) for i in range(3)], [0, 5, -1])
        )
        with pytest.raises(InputError, match=r"2 labels of .* outside 0 to 4, the first of them 5 of image key1"):
            ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=5)

    def test_a_class_without_images_is_named_where_it_matters(self, tmp_path):
        path = str(
            parquet_of_images(tmp_path / "a.parquet", [image_bytes(sample_image(i)) for i in range(3)], [0, 3, 3])
        )
        with pytest.raises(InputError, match=r"3 of 5 classes have no readable image .*: 1, 2, 4;"):
            ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=5)
        index = ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=5, every_class=False)
        assert index.class_counts.tolist() == [1, 0, 0, 2, 0]

    def test_a_class_whose_images_are_all_unreadable_is_named(self, tmp_path):
        files = [image_bytes(sample_image(i)) for i in range(3)] + [b"x"]
        path = str(parquet_of_images(tmp_path / "a.parquet", files, [0, 0, 0, 1]))
        with pytest.raises(InputError, match=r"1 of 2 classes have no readable image .*: 1;"):
            ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=2, max_unreadable=0.5)

    def test_the_number_of_class_folders_must_fit(self, tmp_path):
        folder_of_images(tmp_path / "x")
        for expected in (2, 4):
            with pytest.raises(InputError, match=f"3 class folders, expected {expected}"):
                ImageIndex.build(open_images("folder", str(tmp_path / "x")), resolution=8, num_classes=expected)


def test_a_file_that_is_no_index_is_refused(tmp_path):
    for text in ("[]", "{}", '{"source": "nowhere"}'):
        (tmp_path / "i.json").write_text(text)
        with pytest.raises(InputError, match="no index of images"):
            ImageIndex.load(tmp_path / "i.json")


def index_of(tmp_path, classes=("a", "b"), **settings):
    """A saved index of a folder and its fields."""
    root = folder_of_images(tmp_path / "x", classes, each=2)
    settings = {"resolution": 8, "num_classes": len(classes)} | settings
    ImageIndex.build(open_images("folder", str(root)), **settings).save(tmp_path / "i.json")
    return tmp_path / "i.json", read_json(tmp_path / "i.json")


def test_an_index_keeps_names_counts_and_sizes(tmp_path):
    root = folder_of_images(tmp_path / "x", ("a", "b"), each=2)
    (root / "a/about.txt").write_text("")
    (root / "b/2.png").write_bytes(b"damaged")
    source = open_images("folder", str(root))
    ImageIndex.build(source, resolution=8, num_classes=2, max_unreadable=0.5).save(tmp_path / "i.json")
    values = read_json(tmp_path / "i.json")
    assert values["classes"] == ["a", "b"]
    assert values["left_alone"] == {".txt": 1}
    assert values["listed"] == 5
    assert values["sizes"] == [(root / key).stat().st_size for key in values["keys"]]
    ImageIndex.load(tmp_path / "i.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "i.json").read_bytes()


def test_an_index_from_before_class_names_were_kept_is_read(tmp_path):
    path, values = index_of(tmp_path)
    for name in ("classes", "left_alone", "listed", "sizes"):
        del values[name]
    write_json(path, values)
    index = ImageIndex.load(path)
    assert index.images.classes == ["a", "b"], "folders are in the keys"
    assert (index.sizes, index.images.listed) == ([], None)
    assert index.read(3).size == (20, 16)


def test_images_of_two_splits_are_found_by_their_bytes(tmp_path):
    indexes = []
    for name, numbers in (("train", range(6)), ("val", (9, 3, 8, 5))):
        files = [image_bytes(sample_image(i)) for i in numbers]
        path = parquet_of_images(tmp_path / f"{name}.parquet", files, [0] * len(files))
        indexes.append(ImageIndex.build(open_images("parquet", str(path)), resolution=8, num_classes=1))
    train, val = indexes
    assert shared_images(val, train) == [("key1", "key3"), ("key3", "key5")]
    assert shared_images(train, train) == [(key, key) for key in train.keys]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0, 0, 1]},
        {"labels": [0, 0, 1, 2]},
        {"labels": [0, 0, 1, -1]},
        {"labels": [0, 0, 1, 2**40]},
        {"labels": "0011"},
        {"keys": ["a/0.png"]},
        {"keys": [1, 2, 3, 4]},
        {"checks": "00"},
        {"locations": [1]},
        {"source": ["folder"]},
        {"num_classes": None},
        {"classes": 3},
    ],
)
def test_a_damaged_index_is_refused_in_words(tmp_path, change):
    path, values = index_of(tmp_path)
    write_json(path, values | change)
    with pytest.raises(InputError, match="no index of images"):
        ImageIndex.load(path)


def test_a_file_whose_name_has_the_signs_of_a_pattern_is_itself(tmp_path):
    tar_of_images(tmp_path / "train[1].tar", {"a.png": image_bytes(sample_image(1)), "a.cls": b"0"})
    tar_of_images(tmp_path / "train1.tar", {"b.png": image_bytes(sample_image(1)), "b.cls": b"0"})
    assert open_images("webdataset", str(tmp_path / "train[1].tar")).keys == ["a"]
    assert open_images("webdataset", str(tmp_path / "train?.tar")).keys == ["b"]
    (tmp_path / "train[1].tar").unlink()
    assert open_images("webdataset", str(tmp_path / "train[1].tar")).keys == ["b"]
    parquet_of_images(tmp_path / "a*[x].parquet", [image_bytes(sample_image(1))], [0])
    assert len(open_images("parquet", str(tmp_path / "a*[x].parquet"))) == 1


@pytest.mark.parametrize("made", ["@eaDir", "#Recycle", ".cache"])
def test_a_pattern_finds_no_deleted_shards_unless_it_names_their_folder(tmp_path, made):
    for folder in (tmp_path, tmp_path / made):
        folder.mkdir(exist_ok=True)
        tar_of_images(folder / "a.tar", {"x.png": image_bytes(sample_image(1)), "x.cls": b"0"})
    for pattern in ("**/*.tar", "**/*"):
        assert open_images("webdataset", f"{tmp_path}/{pattern}").files == [f"{tmp_path}/a.tar"]
    assert open_images("webdataset", f"{tmp_path}/{made}/*.tar").files == [f"{tmp_path}/{made}/a.tar"]


def test_a_shard_that_is_a_link_to_nowhere_is_not_passed_over(tmp_path):
    tar_of_images(tmp_path / "a-0.tar", {"a.png": image_bytes(sample_image(1)), "a.cls": b"0"})
    (tmp_path / "a-1.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(InputError, match=r"a-1\.tar is a link that leads nowhere"):
        open_images("webdataset", str(tmp_path / "a-*.tar"))
    with pytest.raises(InputError, match="is a folder, not a tar; give a file, or a pattern"):
        open_images("webdataset", str(tmp_path))
    with pytest.raises(InputError, match="no Parquet file matches"):
        open_images("parquet", str(tmp_path / ("n" * 300)))


def test_real_photos(shared):
    for kind, pattern, side, count in (
        ("parquet", "photos64/val.parquet", 64, 2228),
        ("webdataset", "photos288/photos288-val-*.tar", 288, 359),
    ):
        source = open_images(kind, str(shared / "data" / pattern))
        assert len(source) == count
        assert set(source.labels.tolist()) == set(range(30))
        assert source.read(count - 1).size == (side, side)


def test_an_index_of_images_in_its_own_results_moves_with_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = sample_image(0)
    (tmp_path / "results/before/images").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    inside, outside = Path("results/before/images/train.parquet"), Path("outside/train.parquet")
    for path in (inside, outside):
        parquet_of_images(path, [image_bytes(picture)], [0], ["a"])
    index = ImageIndex.build(open_images("parquet", str(inside)), resolution=8, num_classes=1)
    index.save("results/before/index/train.json")
    assert ImageIndex.load("results/before/index/train.json").images.files == [str(inside)]
    ImageIndex.build(open_images("parquet", str(outside)), resolution=8, num_classes=1).save(
        "results/before/index/o.json"
    )
    assert ImageIndex.load("results/before/index/o.json").images.files == [str(outside)]
    old = read_json("results/before/index/train.json") | {"path": str(inside), "files": [str(inside)]}
    del old["from_index"]
    write_json("results/before/index/old.json", old)
    Path("results/before").rename("results/after")
    Path("elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("train", "old"):
        loaded = ImageIndex.load(f"../results/after/index/{name}.json")
        assert same(loaded.read(0), picture)
        assert loaded.images.path == loaded.images.files[0] == "../results/after/images/train.parquet"
