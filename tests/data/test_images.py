"""Image sources and their index."""

import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpar.data import images
from dpar.data.images import ImageIndex, open_images
from dpar.errors import InputError
from tests.data.samples import folder_of_images, image_bytes, parquet_of_images, picture, tar_of_images


def same(image, expected):
    return image.mode == "RGB" and np.array_equal(np.array(image), np.array(expected.convert("RGB")))


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
    pictures = [picture(i) for i in range(len(labels))]
    digests = []
    for kind, path, order in sources(tmp_path, [image_bytes(p) for p in pictures], labels):
        source = open_images(kind, path)
        index = ImageIndex.build(source, resolution=8, num_classes=3)
        index.save(tmp_path / f"{kind}.json")
        for found in (source, index, ImageIndex.load(tmp_path / f"{kind}.json")):
            assert len(found) == len(found.keys) == len(set(found.keys)) == 7
            assert found.labels.tolist() == [labels[i] for i in order]
            assert found.labels.dtype == np.int32
            for place in (6, 0, 3, 3, 5, 1, 2, 4):  # in any order
                assert same(found.read(place), pictures[order[place]])
        loaded = ImageIndex.load(tmp_path / f"{kind}.json")
        assert (loaded.resolution, loaded.num_classes, loaded.skipped) == (8, 3, [])
        assert loaded.class_counts.tolist() == [2, 2, 3]
        assert loaded.digest == index.digest
        digests.append(index.digest)
    assert len(set(digests)) == 3  # the keys differ


def test_unreadable_images_are_left_out_or_named(tmp_path):
    labels = [0, 1, 1, 0, 0, 1]
    pictures = [picture(i, 40, 40) for i in range(6)]
    files = [image_bytes(p) for p in pictures]
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
            assert all(same(found.read(place), pictures[i]) for place, i in enumerate(kept))
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
    labels, pictures = [0, 1, 1, 0], [picture(i) for i in range(4)]
    list(sources(tmp_path / "changed", [image_bytes(pictures[i]) for i in (0, 2, 1, 3)], labels))
    for kind, path, order in sources(tmp_path / "known", [image_bytes(p) for p in pictures], labels):
        ImageIndex.build(open_images(kind, path), resolution=8, num_classes=2).save(tmp_path / "index.json")
        text = (tmp_path / "index.json").read_text()
        (tmp_path / "index.json").write_text(text.replace(str(tmp_path / "known"), str(tmp_path / "changed")))
        index = ImageIndex.load(tmp_path / "index.json")
        for place, number in enumerate(order):
            if number in (0, 3):
                assert same(index.read(place), pictures[number])
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
    (tmp_path / "x/cat/2.png").write_bytes(image_bytes(picture(77)))
    assert digest() != first


class TestClasses:
    def test_a_label_out_of_range_is_named(self, tmp_path):
        path = str(parquet_of_images(tmp_path / "a.parquet", [image_bytes(picture(i)) for i in range(3)], [0, 5, -1]))
        with pytest.raises(InputError, match=r"2 labels of .* outside 0 to 4, the first of them 5 of image key1"):
            ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=5)

    def test_a_class_without_images_is_named_where_it_matters(self, tmp_path):
        path = str(parquet_of_images(tmp_path / "a.parquet", [image_bytes(picture(i)) for i in range(3)], [0, 3, 3]))
        with pytest.raises(InputError, match=r"3 of 5 classes have no readable image .*: 1, 2, 4;"):
            ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=5)
        index = ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=5, every_class=False)
        assert index.class_counts.tolist() == [1, 0, 0, 2, 0]

    def test_a_class_whose_images_are_all_unreadable_is_named(self, tmp_path):
        files = [image_bytes(picture(i)) for i in range(3)] + [b"x"]
        path = str(parquet_of_images(tmp_path / "a.parquet", files, [0, 0, 0, 1]))
        with pytest.raises(InputError, match=r"1 of 2 classes have no readable image .*: 1;"):
            ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=2, max_unreadable=0.5)

    def test_the_number_of_class_folders_must_fit(self, tmp_path):
        folder_of_images(tmp_path / "x")
        for expected in (2, 4):
            with pytest.raises(InputError, match=f"3 class folders, expected {expected}"):
                ImageIndex.build(open_images("folder", str(tmp_path / "x")), resolution=8, num_classes=expected)


class TestFolder:
    def test_classes_are_sorted_and_other_files_left_alone(self, tmp_path):
        folder_of_images(tmp_path / "x", ("b", "a", "c"), each=1)
        (tmp_path / "x/.git").mkdir()
        (tmp_path / "x/README.md").write_text("about")
        (tmp_path / "x/a/notes.txt").write_text("about")
        (tmp_path / "x/a/.0.png").write_bytes(b"of another system")
        (tmp_path / "x/a/deep/er").mkdir(parents=True)
        (tmp_path / "x/a/deep/er/9.JPEG").write_bytes(image_bytes(picture(9), "JPEG"))
        source = open_images("folder", str(tmp_path / "x"))
        assert source.keys == ["a/0.png", "a/deep/er/9.JPEG", "b/0.png", "c/0.png"]
        assert source.labels.tolist() == [0, 0, 1, 2]

    def test_missing_empty_and_classless_folders(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            open_images("folder", str(tmp_path / "none"))
        with pytest.raises(InputError, match="no sub-folders"):
            open_images("folder", str(tmp_path))
        folder_of_images(tmp_path / "x")
        (tmp_path / "x/dog").mkdir()
        with pytest.raises(InputError, match=r"class folder .*x/dog holds no images"):
            open_images("folder", str(tmp_path / "x"))


class TestParquet:
    def test_few_row_groups_are_kept(self, tmp_path, monkeypatch):
        pictures = [picture(i) for i in range(9)]
        path = parquet_of_images(tmp_path / "a.parquet", [image_bytes(p) for p in pictures], [0] * 9)
        monkeypatch.setattr(images, "_ROW_GROUP_CACHE", 3000)
        source = open_images("parquet", str(path))
        for i in (8, 0, 4, 1, 7, 2, 8, 0):
            assert same(source.read(i), pictures[i])
            assert len(source._groups) <= 2

    def test_files_that_do_not_fit_are_named(self, tmp_path):
        path = tmp_path / "a.parquet"
        with pytest.raises(InputError, match=r"no Parquet file matches .*a\.parquet"):
            open_images("parquet", str(path))
        pq.write_table(pa.table({"key": ["a"], "picture": [b"x"], "label": [1]}), path)
        with pytest.raises(InputError, match=r"a\.parquet has no column image but key, picture, label"):
            open_images("parquet", str(path))
        pq.write_table(pa.table({"key": ["a"], "image": ["x"], "label": [1]}), path)
        with pytest.raises(InputError, match=r"column image of .*a\.parquet is string, expected binary"):
            open_images("parquet", str(path))
        for labels in ([1.5], ["cat"], pa.array([None], pa.int32())):
            pq.write_table(pa.table({"key": ["a"], "image": [b"x"], "label": labels}), path)
            with pytest.raises(InputError, match=r"column label of .*a\.parquet"):
                open_images("parquet", str(path))
        parquet_of_images(path, [], [])
        with pytest.raises(InputError, match="holds no images"):
            open_images("parquet", str(path))
        for data in (b"", b"PAR1 no Parquet", parquet_of_images(path, [b"x"], [0]).read_bytes()[:-20]):
            path.write_bytes(data)
            with pytest.raises(InputError, match=r"a\.parquet is not a whole Parquet file"):
                open_images("parquet", str(path))


class TestTars:
    def test_files_that_do_not_fit_are_named(self, tmp_path):
        png, path = image_bytes(picture(1)), tmp_path / "a.tar"
        with pytest.raises(InputError, match=r"no tar matches .*a\.tar"):
            open_images("webdataset", str(path))
        for members, message in (
            ({"x.png": png}, r"sample x of .*a\.tar has no label"),
            ({"x.cls": b"1"}, r"sample x of .*a\.tar has no image"),
            ({"x.png": png, "x.jpg": png, "x.cls": b"1"}, r"sample x of .*a\.tar has two images"),
            ({"x.png": png, "x.cls": b"cat"}, r"x\.cls of .*a\.tar holds b'cat', expected a label"),
            ({}, "holds no images"),
        ):
            tar_of_images(path, members)
            with pytest.raises(InputError, match=message):
                open_images("webdataset", str(path))

    def test_a_truncated_or_compressed_tar_is_refused(self, tmp_path):
        members = {"x.cls": b"1", "x.png": image_bytes(picture(1))}
        whole = tar_of_images(tmp_path / "a.tar", members).read_bytes()
        for length in (0, 300, 700, 1600):
            (tmp_path / "a.tar").write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"a\.tar is not a whole, uncompressed tar"):
                open_images("webdataset", str(tmp_path / "a.tar"))
        with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "a.tar", "x")
        with pytest.raises(InputError, match="decompress it"):
            open_images("webdataset", str(tmp_path / "b.tar.gz"))


def test_a_file_that_is_no_index_is_refused(tmp_path):
    for text in ("[]", "{}", '{"source": "nowhere"}'):
        (tmp_path / "i.json").write_text(text)
        with pytest.raises(InputError, match="no index of images"):
            ImageIndex.load(tmp_path / "i.json")


def test_real_photos(shared):
    for kind, pattern, side, count in (
        ("parquet", "photos64/val.parquet", 64, 2228),
        ("webdataset", "photos288/photos288-val-*.tar", 288, 359),
    ):
        source = open_images(kind, str(shared / "data" / pattern))
        assert len(source) == count
        assert set(source.labels.tolist()) == set(range(30))
        assert source.read(count - 1).size == (side, side)
