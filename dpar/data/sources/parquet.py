"""Parquet files of images: our own columns, or those that Hugging Face's `datasets` writes."""

import json
import os
import threading
from collections import OrderedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from dpar.data.sources.source import (
    ImageSource,
    by_label,
    distinct_keys,
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
    and row. Class names come from a column `class_name`, or from the schema: a list `classes` in its metadata, or the
    features that Hugging Face keeps there.

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
                listed = _schema_names(parquet.schema_arrow)
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


def _keys(file: str, table: pa.Table, first: int) -> list[str]:
    """The names of the rows; `first` is the number of the first of them."""
    if "key" not in table.column_names:
        return [f"{os.path.basename(file)}:{row}" for row in range(first, first + len(table))]
    column = table.column("key")
    if column.null_count:
        raise InputError(f"column key of {file} has {column.null_count} nulls; give every image a key, or remove it")
    return list(map(str, column.to_pylist()))


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
    pairs = table.select(["label", "class_name"]).group_by(["label", "class_name"]).aggregate([])
    for label, name in zip(pairs["label"].to_pylist(), pairs["class_name"].to_pylist(), strict=True):
        if name is None:
            raise InputError(
                f"column class_name of {file} is null for label {label}; name the class, or drop the column"
            )
        merge_names(names, {label: str(name)}, file)
    return names


def _schema_names(schema: pa.Schema) -> dict[int, str]:
    """Label -> name by the list `classes` in the schema, or by the `ClassLabel` of Hugging Face's `datasets`."""
    metadata = schema.metadata or {}
    try:
        if b"classes" in metadata:
            names = json.loads(metadata[b"classes"])
        else:
            names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return dict(enumerate(map(str, names))) if isinstance(names, list) else {}
    except (KeyError, TypeError, ValueError):
        return {}
