"""Parquet files of images, ours and Hugging Face's."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpar.data.images import ImageIndex, open_images
from dpar.data.sources import parquet
from dpar.errors import InputError
from tests.data.samples import image_bytes, parquet_of_images, same, sample_image


def huggingface(path, files, labels, names=("a", "b", "c"), paths=None):
    """A file as Hugging Face's `datasets` writes it."""
    rows = [{"bytes": data, "path": p} for data, p in zip(files, paths or ["n.JPEG"] * len(files), strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())})
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def with_columns(path, files=3, **columns):
    """A file of ours with other columns."""
    images = pa.array([image_bytes(sample_image(i)) for i in range(files)], pa.binary())
    pq.write_table(pa.table({"image": images, **columns}), path)
    return str(path)


def test_few_row_groups_are_kept(tmp_path, monkeypatch):
    originals = [sample_image(i) for i in range(9)]
    path = parquet_of_images(tmp_path / "a.parquet", [image_bytes(p) for p in originals], [0] * 9)
    monkeypatch.setattr(parquet, "_ROW_GROUP_CACHE", 3000)
    source = open_images("parquet", str(path))
    for i in (8, 0, 4, 1, 7, 2, 8, 0):
        assert same(source.read(i), originals[i])
        assert len(source._groups) <= 2


@pytest.mark.parametrize("first", [0, 1])
def test_numbered_parts_that_the_pattern_asks_for_must_be_there(tmp_path, first):
    for number in (first, first + 2):
        parquet_of_images(tmp_path / f"train-{number:05d}-of-00003.parquet", [image_bytes(sample_image(number))], [0])
    lost = f"train-{first + 1:05d}-of-00003.parquet"
    with pytest.raises(InputError, match=rf"matches 2 files, and 1 more .* missing: {lost}; fetch them, or give"):
        open_images("parquet", str(tmp_path / "train-*"))
    assert len(open_images("parquet", f"{tmp_path}/train-0000[{first}{first + 2}]-of-*.parquet")) == 2
    assert len(open_images("parquet", f"{tmp_path}/train-{first:05d}-of-00003.parquet")) == 1


@pytest.mark.parametrize("first", [0, 1])
def test_parts_are_known_by_their_numbers_however_these_are_written(tmp_path, first):
    images = [image_bytes(sample_image(0))]
    for number in range(first, first + 11):
        parquet_of_images(tmp_path / f"train-{number}-of-11.parquet", images, [0], keys=[f"{number}"])
        parquet_of_images(
            tmp_path / f"old-{number:05d}-of-00011-{number**9:016x}.parquet", images, [0], keys=[f"{number}"]
        )
    assert len(open_images("parquet", f"{tmp_path}/train-*")) == len(open_images("parquet", f"{tmp_path}/old-*")) == 11
    for lost in (f"train-{first + 3}-of-11.parquet", f"old-{first + 3:05d}-of-00011-*.parquet"):
        next(tmp_path.glob(lost)).unlink()
        with pytest.raises(InputError, match=rf"matches 10 files, and 1 more .* missing: {re.escape(lost)}; fetch"):
            open_images("parquet", f"{tmp_path}/{lost[:3]}*.parquet")


def test_a_pattern_reaches_any_depth_by_two_stars_and_no_folder_twice(tmp_path):
    for place in ("a.parquet", "b/b.parquet", "b/c/d/d.parquet"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        parquet_of_images(tmp_path / place, [image_bytes(sample_image(0))], [0], keys=[place])
    (tmp_path / "a link to all").symlink_to(tmp_path)
    assert open_images("parquet", f"{tmp_path}/**/*.parquet").keys == ["a.parquet", "b/b.parquet", "b/c/d/d.parquet"]


def test_files_that_do_not_fit_are_named(tmp_path):
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


def test_hugging_faces_files_are_taken_with_their_class_names(tmp_path):
    originals = [sample_image(i) for i in range(6)]
    for number in range(2):  # rows have the same paths in both
        part = [image_bytes(p) for p in originals[3 * number : 3 * number + 3]]
        huggingface(tmp_path / f"train-{number}.parquet", part, [2, 0, 1])
    source = open_images("parquet", str(tmp_path / "train-*.parquet"))
    assert source.keys == [f"train-{n}.parquet:{row}" for n in range(2) for row in range(3)]
    assert source.labels.tolist() == [2, 0, 1] * 2
    assert source.classes == ["a", "b", "c"]
    index = ImageIndex.build(source, resolution=8, num_classes=3)
    index.save(tmp_path / "i.json")
    loaded = ImageIndex.load(tmp_path / "i.json")
    assert all(same(loaded.read(i), originals[i]) for i in (5, 0, 3, 1, 4, 2))
    assert loaded.images.classes == ["a", "b", "c"]


def test_a_row_that_only_names_a_file_says_what_to_do(tmp_path):
    files = [image_bytes(sample_image(0)), None, None]
    path = huggingface(tmp_path / "a.parquet", files, [0, 0, 0], paths=["x", "cats/1.jpg", None])
    with pytest.raises(
        InputError, match=r"a\.parquet:1 \(the row names a file, cats/1\.jpg, and has no bytes"
    ) as caught:
        ImageIndex.build(open_images("parquet", str(path)), resolution=8, num_classes=1)
    assert "a.parquet:2 (the row has no image)" in str(caught.value)


@pytest.mark.parametrize("far", [2**31, 2**32 + 2, -(2**31) - 1, 2**63 - 1, 2**64 - 1])
def test_a_label_beyond_all_classes_is_named_and_never_wrapped(tmp_path, far):
    kind = pa.uint64() if far > 2**63 else pa.int64()
    path = with_columns(tmp_path / "a.parquet", label=pa.array([0, 1, far], kind))
    with pytest.raises(InputError, match=rf"label out of range: {far} in row 2 of .*a\.parquet"):
        open_images("parquet", path)


@pytest.mark.parametrize(
    "labels",
    [[True, False, True], [0.0, 1.0, 2.0], ["0", "1", "2"], [0, None, 1], pa.array([0, 1, 2], pa.decimal128(5))],
)
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, labels):
    with pytest.raises(InputError, match=r"column label of .*a\.parquet"):
        open_images("parquet", with_columns(tmp_path / "a.parquet", label=labels))


def test_names_of_columns_are_not_guessed(tmp_path):
    with pytest.raises(InputError, match=r"no column label but image, fine_label; expected image .* and label"):
        open_images("parquet", with_columns(tmp_path / "a.parquet", fine_label=[0, 1, 2]))
    for kind, match in ((pa.struct([("path", pa.string())]), "struct"), (pa.list_(pa.uint8()), "list")):
        pq.write_table(pa.table({"image": pa.array([None], kind), "label": [0]}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=f"column image of .* is {match}.*expected binary"):
            open_images("parquet", str(tmp_path / "a.parquet"))


def test_keys_name_one_image_each(tmp_path):
    for keys, match in (
        (["k", "j", "k"], "key k stands 2 times in"),
        (["k", None, "j"], "column key of .* has 1 nulls"),
    ):
        path = with_columns(tmp_path / "a.parquet", key=keys, label=[0, 0, 0])
        with pytest.raises(InputError, match=match):
            open_images("parquet", path)
    for name in "ab":
        with_columns(tmp_path / f"{name}.parquet", key=["1", "2", "3"], label=[0, 0, 0])
    keys = open_images("parquet", str(tmp_path / "*.parquet")).keys
    assert keys == [f"{name}.parquet:{key}" for name in "ab" for key in "123"]


def test_keys_are_names_and_never_paths(tmp_path):
    keys = ["../../out.png", "/etc/passwd", "$(touch out) <b>\n"]
    path = with_columns(tmp_path / "a.parquet", key=keys, label=[0, 0, 0])
    ImageIndex.build(open_images("parquet", path), resolution=8, num_classes=1).save(tmp_path / "i.json")
    loaded = ImageIndex.load(tmp_path / "i.json")
    assert loaded.keys == keys
    assert all(same(loaded.read(i), sample_image(i)) for i in range(3))
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.parquet", "i.json"]


def test_keys_that_are_no_text_are_refused(tmp_path):
    broken = pa.array([b"a", b"\xff", b"b"], pa.binary()).view(pa.string())
    with pytest.raises(InputError, match=r"a\.parquet is not a whole Parquet file"):
        open_images("parquet", with_columns(tmp_path / "a.parquet", key=broken, label=[0, 0, 0]))


class TestClassNames:
    def test_a_column_names_the_classes(self, tmp_path):
        path = with_columns(tmp_path / "a.parquet", label=[2, 0, 2], class_name=["cat", "ant", "cat"])
        source = open_images("parquet", path)
        assert source.classes == ["ant", None, "cat"]
        index = ImageIndex.build(source, resolution=8, num_classes=5, every_class=False)
        assert index.images.classes == ["ant", None, "cat", None, None]

    def test_a_label_with_two_names_is_refused(self, tmp_path):
        path = with_columns(tmp_path / "a.parquet", label=[2, 0, 2], class_name=["cat", "ant", "dog"])
        with pytest.raises(InputError, match=r"calls label 2 \w+, which is \w+ elsewhere"):
            open_images("parquet", path)
        path = with_columns(tmp_path / "a.parquet", label=[2, 0, 2], class_name=["cat", None, "cat"])
        with pytest.raises(InputError, match=r"class_name of .* is null for label 0"):
            open_images("parquet", path)

    def test_files_that_number_their_classes_apart_are_refused(self, tmp_path):
        file = image_bytes(sample_image(0))
        huggingface(tmp_path / "a.parquet", [file], [0], names=("a", "b"))
        huggingface(tmp_path / "b.parquet", [file], [0], names=("b", "a"))
        with pytest.raises(InputError, match=r"b\.parquet calls label 0 b, which is a elsewhere"):
            open_images("parquet", str(tmp_path / "*.parquet"))

    @staticmethod
    def described(path, key, metadata):
        with_columns(path, label=[0, 1, 2])
        pq.write_table(pq.read_table(path).replace_schema_metadata({key: metadata}), path)
        return open_images("parquet", str(path)).classes

    @pytest.mark.parametrize("label", ['{"dtype": "int64", "_type": "Value"}', '{"names": null}', "null", "[]"])
    def test_features_without_names_name_nothing(self, tmp_path, label):
        assert self.described(tmp_path / "a.parquet", "huggingface", b"[]") is None
        assert self.described(tmp_path / "a.parquet", "huggingface", b'{"info": null}') is None
        features = f'{{"info": {{"features": {{"label": {label}}}}}}}'
        assert self.described(tmp_path / "a.parquet", "huggingface", features) is None

    @pytest.mark.parametrize(
        "names", ['["a", "b", "c"]', '{"0": "a", "1": "b", "2": "c"}', '{"2":"c","0":"a","1":"b"}']
    )
    def test_names_are_a_list_or_stand_by_number(self, tmp_path, names):
        path = tmp_path / "a.parquet"
        assert self.described(path, "classes", names) == ["a", "b", "c"]
        for label in (
            f'{{"names": {names}, "_type": "ClassLabel"}}',
            f'{{"feature": {{"names": {names}, "_type": "ClassLabel"}}, "_type": "Sequence"}}',
            f'{{"dtype": {{"class_label": {{"names": {names}}}}}}}',
        ):
            features = f'{{"info": {{"features": {{"label": {label}}}}}}}'
            assert self.described(path, "huggingface", features) == ["a", "b", "c"]

    @pytest.mark.parametrize(
        "names",
        [
            "{",
            "3",
            '"abc"',
            '{"0": "a", "2": "c"}',
            '{"1": "a", "2": "b"}',
            '{"a": 0, "b": 1}',
            '["a", null]',
            "[1, 2]",
        ],
    )
    def test_names_in_another_form_are_refused_by_file_and_key(self, tmp_path, names):
        features = f'{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}'
        for key, metadata in (("classes", names), ("huggingface", features)):
            with pytest.raises(InputError, match=rf"a\.parquet has class names under '{key}' that cannot be read"):
                self.described(tmp_path / "a.parquet", key, metadata)

    @pytest.mark.parametrize(
        "kind",
        [pa.binary(), pa.large_binary(), pa.binary_view(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    )
    def test_names_may_be_the_bytes_of_text(self, tmp_path, kind):
        names = pa.array(["caf\u00e9", "b", "caf\u00e9"]).cast(kind)
        path = with_columns(tmp_path / "a.parquet", label=[0, 1, 0], class_name=names)
        assert open_images("parquet", path).classes == ["caf\u00e9", "b"]
        path = with_columns(tmp_path / "a.parquet", label=[0, 1, 0], key=pa.array(["x", "y", "z"]).cast(kind))
        assert open_images("parquet", path).keys == ["x", "y", "z"]

    @pytest.mark.parametrize("column", ["key", "class_name"])
    def test_names_of_another_type_are_refused_with_it(self, tmp_path, column):
        for values, message in (
            ([["a"], ["b"], ["c"]], rf"column {column} of .*a\.parquet is list<.*string>, expected text"),
            ([0.5, 1.5, 2.5], rf"column {column} of .* is double, expected text"),
            ([b"a", b"\xff", b"c"], rf"column {column} of .* holds b'\\xff', expected text in UTF-8"),
        ):
            path = with_columns(tmp_path / "a.parquet", **{"label": [0, 1, 2], column: pa.array(values)})
            with pytest.raises(InputError, match=message):
                open_images("parquet", path)


def test_labels_of_every_width_are_read(tmp_path):
    for kind in (pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.uint64()):
        path = with_columns(tmp_path / "a.parquet", label=pa.array([0, 2, 1], kind))
        labels = open_images("parquet", path).labels
        assert labels.tolist() == [0, 2, 1]
        assert labels.dtype == np.int32


def test_images_that_are_views_of_bytes_are_read(tmp_path):
    files = [image_bytes(sample_image(i)) for i in range(3)]
    table = pa.table({"image": pa.array(files, pa.binary_view()), "label": pa.array([0, 1, 2])})
    pq.write_table(table, tmp_path / "a.parquet")
    found = open_images("parquet", str(tmp_path / "a.parquet"))
    assert [found.data(i) for i in range(3)] == files


def test_labels_beyond_the_list_of_names_are_refused_with_their_number_and_range(tmp_path):
    files = [image_bytes(sample_image(i)) for i in range(5)]
    path = huggingface(tmp_path / "a.parquet", files, [0, 1, 2, 5, 3], names=("a", "b"))
    with pytest.raises(InputError, match=r"a\.parquet names the classes 0 to 1, and 3 labels, 2 to 5, lie beyond"):
        open_images("parquet", str(path))
    path = huggingface(tmp_path / "b.parquet", files, [0, -1, 1, 1, -1], names=("a", "b"))  # as of unlabelled images
    assert open_images("parquet", str(path)).classes == ["a", "b"]
