"""Parquet files of images: our own columns, or those that Hugging Face's `datasets` writes."""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from dpar.data.sources.source import (
    ImageSource,
    by_label,
    distinct_keys,
    expect_every_part,
    expect_named,
    matching_files,
    merge_names,
)
from dpar.errors import InputError, shown

_ROW_GROUP_CACHE = 2**30  # bytes of encoded images that a Parquet source keeps at hand
_EXPECTED = (
    "expected image (bytes of an image file, or Hugging Face's bytes and path) and label (a whole number), "
    "and where there are such key (text) and class_name (text)"
)


class ParquetImages(ImageSource):
    """Parquet files with columns `image` (the bytes of an image file) and `label` (a whole number).

    `image` may also be Hugging Face's struct of `bytes` and `path`. Without a column `key` images are called by file
    and row. Class names come from a column `class_name`, or from the schema: `classes` in its metadata (a list, or
    names by number), or the features that Hugging Face keeps there.

    An image is read with its row group; recently used row groups are kept, up to 1 GiB. Sets larger than that are read
    quickly in order, and in random order only if their row groups are small.
    """

    kind = "parquet"
    holder = "Parquet file"
    location_names = ("file", "group", "row")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def scan(cls, path: str) -> "ImageSource":
        """All rows, file by file in the order of their names.

        Raises:
            InputError: a file is damaged or has other columns, or labels or keys that cannot be.
        """
        files = matching_files(path, cls.holder)
        expect_every_part(path, files)
        keys: list[str] = []
        labels, locations = [np.empty(0, np.int64)], {name: [np.empty(0, np.int64)] for name in cls.location_names}
        names: dict[int, str] = {}
        for number, file in enumerate(files):
            try:
                parquet = pq.ParquetFile(file)
                _check_columns(file, parquet.schema_arrow)
                row = 0
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, columns=["key", "label", "class_name"])
                    count = len(table)
                    keys += _keys(file, table, row)
                    labels.append(_labels(file, table, row))
                    merge_names(names, _column_names(file, table), file)
                    for name, values in zip(
                        cls.location_names,
                        (np.full(count, number), np.full(count, group), np.arange(count)),
                        strict=True,
                    ):
                        locations[name].append(values)
                    row += count
                listed = _schema_names(file, parquet.schema_arrow)
                own = labels[len(labels) - parquet.num_row_groups :]
                expect_named(file, np.concatenate([labels[0], *own]), listed, names)
                merge_names(names, listed, file)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise InputError(f"{file} is not a whole Parquet file ({error}); fetch or make it again") from error
        columns = {name: np.concatenate(parts) for name, parts in locations.items()}
        keys = distinct_keys(keys, columns["file"].tolist(), files)
        return cls(path, files, keys, np.concatenate(labels), columns, classes=by_label(names))

    def data(self, i: int) -> bytes:
        """The file of image `i`."""
        file, group, row = (int(self.locations[name][i]) for name in self.location_names)
        with self._lock:
            if (file, group) in self._groups:
                self._groups.move_to_end((file, group))
            else:
                self._groups[file, group] = self._read(self.files[file], group)
                while len(self._groups) > 1 and sum(c.nbytes for c in self._groups.values()) > _ROW_GROUP_CACHE:
                    self._groups.popitem(last=False)
            column = self._groups[file, group]
            if row >= len(column):
                raise ValueError("its file has changed since it was indexed")
            value = column[row]
        if pa.types.is_struct(value.type) and value.is_valid:
            if not value["bytes"].is_valid and "path" in value and value["path"].is_valid:
                raise ValueError(
                    f"the row names a file, {shown(value['path'].as_py())}, and has no bytes: write the table again "
                    "with the files in it, or use `source: folder`"
                )
            value = value["bytes"]
        if not value.is_valid:
            raise ValueError("the row has no image")
        return value.as_py()

    @staticmethod
    def _read(file: str, group: int) -> pa.ChunkedArray:
        try:
            return pq.ParquetFile(file).read_row_group(group, columns=["image"]).column("image")
        except (pa.ArrowException, KeyError, IndexError) as error:
            raise OSError(f"row group {group} of {file} is damaged: {error}") from error


def _check_columns(file: str, schema: pa.Schema) -> None:
    """Raises `InputError` if columns are missing, stand twice or hold something else."""
    listed = ", ".join(map(shown, schema.names)) or "nothing"
    if missing := {"image", "label"} - set(schema.names):
        raise InputError(f"{file} has no column {' or '.join(sorted(missing))} but {listed}; {_EXPECTED}")
    for name in ("key", "image", "label", "class_name"):
        if schema.names.count(name) > 1:
            raise InputError(f"{file} has the column {name} twice, of {listed}; keep one")
    kind = schema.field("image").type
    if pa.types.is_struct(kind) and "bytes" in [kind.field(i).name for i in range(kind.num_fields)]:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise InputError(f"column image of {file} is {kind}, expected binary: the bytes of an image file")
    if not pa.types.is_integer(schema.field("label").type):
        raise InputError(f"column label of {file} is {schema.field('label').type}, expected whole numbers")
    for name in {"key", "class_name"} & set(schema.names):
        kind = schema.field(name).type
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (_is_text(inner) or pa.types.is_integer(inner) or pa.types.is_null(inner)):
            raise InputError(f"column {name} of {file} is {kind}, expected text: one name per image")


def _is_text(kind: pa.DataType) -> bool:
    """Whether values are text, or the bytes of text."""
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _text(file: str, column: str, value: Any) -> str:
    """A key or a class name; bytes are UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise InputError(f"column {column} of {file} holds {value[:40]!r}, expected text in UTF-8") from None


def _keys(file: str, table: pa.Table, first: int) -> list[str]:
    """The names of the rows; `first` is the number of the first of them."""
    if "key" not in table.column_names:
        return [f"{os.path.basename(file)}:{row}" for row in range(first, first + len(table))]
    column = table.column("key")
    if column.null_count:
        raise InputError(f"column key of {file} has {column.null_count} nulls; give every image a key, or remove it")
    return [_text(file, "key", value) for value in column.to_pylist()]


def _labels(file: str, table: pa.Table, first: int) -> Int[np.ndarray, "N"]:
    """The labels (int64); `first` is the number of the first row."""
    column = table.column("label")
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise InputError(f"column label of {file} has {column.null_count} nulls, the first in row {row}; give labels")
    values = column.to_numpy()
    far = np.flatnonzero((values < -(2**31)) | (values >= 2**31))
    if len(far):
        raise InputError(
            f"label out of range: {values[far[0]]} in row {first + far[0]} of {file}, and {len(far) - 1} more of its "
            "row group; labels count the classes from 0"
        )
    return values.astype(np.int64)


def _column_names(file: str, table: pa.Table) -> dict[int, str]:
    """Label -> name by the column `class_name`."""
    if "class_name" not in table.column_names or not len(table):
        return {}
    names: dict[int, str] = {}
    kind = table.schema.field("class_name").type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):  # these cannot be grouped
        plain = table["class_name"].cast(pa.large_binary())
        table = table.set_column(table.column_names.index("class_name"), "class_name", plain)
    pairs = table.select(["label", "class_name"]).group_by(["label", "class_name"]).aggregate([])
    for label, name in zip(pairs["label"].to_pylist(), pairs["class_name"].to_pylist(), strict=True):
        if name is None:
            raise InputError(
                f"column class_name of {file} is null for label {label}; name the class, or drop the column"
            )
        merge_names(names, {label: _text(file, "class_name", name)}, file)
    return names


def _schema_names(file: str, schema: pa.Schema) -> dict[int, str]:
    """Label -> name by `classes` in the schema, or by the `ClassLabel` of Hugging Face's `datasets`; empty without.

    Raises:
        InputError: there are names in another form than a list, or an object of names by the numbers 0 to n - 1.
    """
    metadata = schema.metadata or {}
    key = next((key for key in ("classes", "huggingface") if key.encode() in metadata), None)
    if key is None:
        return {}
    try:
        found: Any = json.loads(metadata[key.encode()])
        if key == "huggingface":
            for part in ("info", "features", "label"):
                found = found.get(part) if isinstance(found, dict) else None
            found = next(_names_below(found), None)
        return {} if found is None else _numbered_names(found)
    except (ValueError, RecursionError):
        raise InputError(
            f"the schema's metadata of {file} has class names under {key!r} that cannot be read, expected a JSON list "
            'of names, or an object with a name for each number from 0 on, {"0": "cat", "1": "dog"}; '
            "correct or remove it"
        ) from None


def _names_below(feature: Any) -> Iterator[Any]:
    """The `names` of a feature, or of the features that are nested in it."""
    if isinstance(feature, dict):
        if feature.get("names") is not None:
            yield feature["names"]
        for part in feature.values():
            yield from _names_below(part)


def _numbered_names(found: Any) -> dict[int, str]:
    """Raises `ValueError` unless it is a list, or an object of names by the numbers 0 to n - 1."""
    if isinstance(found, dict):
        if found.keys() != {str(label) for label in range(len(found))}:
            raise ValueError
        found = [found[str(label)] for label in range(len(found))]
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise ValueError
    return dict(enumerate(found))
