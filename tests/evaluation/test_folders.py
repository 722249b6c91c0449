"""What a folder holds is counted whole, each file once."""

import pytest

from dpar.errors import InputError
from dpar.evaluation.folders import Contents, kind_of


def filled(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return Contents.of(root)


def test_kinds_go_by_suffix():
    names = ("a.PNG", "a.b.jpg", "a.jfif", "a.npz", "a.tar", "a.parquet", "a.tar.gz", "a", "jpg", "a.heic", "a.npy")
    found = [kind_of(name) for name in names]
    assert found == ["image"] * 3 + [".npz", ".tar", ".parquet"] + [None] * 5


def test_everything_is_counted_where_it_lies(tmp_path):
    found = filled(
        tmp_path, "b.png", "a.jpg", "x.npz", "c/d/1.png", "c/2.png", "e/x.tar", "f/none.txt", "g.txt", "h", ".i.png"
    )
    assert found.here == {"image": ["a.jpg", "b.png"], ".npz": ["x.npz"]}
    assert found.below == {"image": 2, ".tar": 1}
    assert found.folders == ["c", "e"]
    assert found.left_alone.summary() == {".txt": 1, "without a suffix": 1}


def test_samples_have_contact_sheets(tmp_path):
    found = filled(tmp_path, "00000.npz", "00000.png", "00001.npz", "00001.png")
    assert found.only_kind(tmp_path) == ".npz"
    assert filled(tmp_path, "00002.png").here["image"] == ["00002.png"]


def test_the_one_kind_is_named(tmp_path):
    assert filled(tmp_path / "a", "x.png").only_kind(tmp_path / "a") == "image"
    assert filled(tmp_path / "b", "c/x.png", "c/d/y.png").only_kind(tmp_path / "b") == "folder"
    assert filled(tmp_path / "e", "x.tar", "y.tar", "empty/notes.md").only_kind(tmp_path / "e") == ".tar"
    with pytest.raises(
        InputError,
        match=r"holds 1,200 images \(0\.png, 1\.png, 10\.png, .*\) and 1 \.tar \(x\.tar\)",
    ):
        filled(tmp_path / "f", "x.tar", *(f"{n}.png" for n in range(1200))).only_kind(tmp_path / "f")


def test_links_are_counted_once(tmp_path):
    filled(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    (tmp_path / "a" / "top").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "self").symlink_to("self")
    found = Contents.of(tmp_path)
    assert found.below == {"image": 3}
    assert found.folders == ["a", "b"]
