"""The stage that draws pictures."""

import pyarrow.parquet as pq
import pytest

from dpar.data.generated import CLASSES
from dpar.data.images import ImageIndex, open_images
from dpar.errors import InputError
from dpar.stages.generate_images import main
from tests.stages.experiments import write_experiment


def test_draws_a_split(tmp_path, monkeypatch):
    monkeypatch.setattr("dpar.stages.generate_images._ROW_GROUP", 5)
    experiment = write_experiment(tmp_path, seed=3)
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        main(["--experiment", str(experiment), "--split", split, "--output", str(tmp_path / f"{name}.parquet")])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    train, val = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in "ac")
    assert train["label"] == [i % 8 for i in range(16)]
    assert len(set(train["key"])) == 16
    assert len(val["key"]) == 8
    assert not set(train["image"]) & set(val["image"])
    index = ImageIndex.build(open_images("parquet", str(tmp_path / "a.parquet")), resolution=64, num_classes=8)
    assert index.read(0).size == (64, 64)
    other = write_experiment(tmp_path / "other", seed=4)
    main(["--experiment", str(other), "--split", "train", "--output", str(tmp_path / "d.parquet")])
    assert not set(train["image"]) & set(pq.read_table(tmp_path / "d.parquet").to_pydict()["image"])


def test_refuses_what_it_cannot_draw(tmp_path):
    flags = ["--split", "train", "--output", str(tmp_path / "a.parquet"), "--experiment"]
    with pytest.raises(InputError, match=f"num_classes is 9, at most {len(CLASSES)}"):
        main([*flags, str(write_experiment(tmp_path, num_classes=9))])
    with pytest.raises(InputError, match=r"images\.source is `folder`"):
        main([*flags, str(write_experiment(tmp_path, source="folder", train="x", val="y"))])
    assert not (tmp_path / "a.parquet").exists()
