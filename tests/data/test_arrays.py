"""Arrays of anybody: numbers alone, whole, and no more than their file can hold."""

import io
import zipfile

import numpy as np
import pytest

from dpar.data.arrays import LARGEST, foreign, read_npy, read_npz
from dpar.errors import InputError

HUGE = (LARGEST, 2)


def header(shape, dtype="<f8"):
    """The first bytes of an array of this shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def archive(path, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


def load(read, path, **options):
    with foreign(path, "file of numbers", "make it again"):
        return read(path, **options)


def test_arrays_come_back(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3), b=np.ones((2, 2)))
    assert list(load(read_npz, tmp_path / "a.npz")) == ["a", "b"]
    assert load(read_npz, tmp_path / "a.npz", names=["b", "c"])["b"].tolist() == [[1, 1], [1, 1]]
    np.save(tmp_path / "a.npy", np.arange(5))
    for mapped in (False, True):
        found = load(read_npy, tmp_path / "a.npy", mapped=mapped)
        assert isinstance(found, np.memmap) == mapped
        assert found.tolist() == [0, 1, 2, 3, 4]


def test_wanted_arrays_alone_are_looked_at(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3), b=np.array([{}]))
    assert load(read_npz, tmp_path / "a.npz", names=["a"])["a"].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="Python objects, which are never loaded"):
        load(read_npz, tmp_path / "a.npz")


def test_more_than_a_file_can_hold_is_refused_before_it_is_read(tmp_path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        bomb = archive(tmp_path / "a.npz", compression, a=header(HUGE) + bytes(9999))
        with pytest.raises(InputError, match=r"would take 16\.0 GiB, .*: the limit is 1 GiB, or 100 times the file"):
            load(read_npz, bomb)
    (tmp_path / "a.npy").write_bytes(header(HUGE) + bytes(9999))
    with pytest.raises(InputError, match="of which 9999 are there"):
        load(read_npy, tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"\(it begins with b''\)"),
        (b"PAR1....", "it is a Parquet file"),
        (b"PK\3\4....", "it is an archive"),
        (b"<html><body>", "it is a web page"),
        (b"\x80\x04\x95pickle", r"\(it begins with b'"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8'", "no whole file of numbers"),
        (header((4,), "|O"), "Python objects, which are never loaded"),
        (header((4,)), "takes 32 bytes, of which 0 are there"),
        (header((-4,)), r"its shape is \(-4,\)"),
    ],
)
def test_what_is_no_array_is_one_line(data, said, tmp_path):
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        load(read_npy, tmp_path / "x.npy")
    assert "allow_pickle" not in str(caught.value)
    assert str(caught.value).endswith("; make it again")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.npy does not exist; make it again"):
        load(read_npy, tmp_path / "none.npy")
    with pytest.raises(InputError, match="no whole file of numbers"):
        load(read_npz, tmp_path)


def test_errors_of_the_caller_pass():
    with pytest.raises(InputError, match=r"^as it was said$"), foreign("x", "file", "cure"):
        raise InputError("as it was said")
    with pytest.raises(KeyboardInterrupt), foreign("x", "file", "cure"):
        raise KeyboardInterrupt
