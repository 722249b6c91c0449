import json
from pathlib import Path

import pytest

from dpar.errors import InputError
from dpar.tracking import lineage


@pytest.fixture
def graph(results: Path, job) -> Path:
    """Images -> codes in five shards -> model -> metrics -> table."""
    index = {"source": "folder", "path": "/data/photos", "count": 9, "num_classes": 3, "digest": "feed", "labels": []}
    (results / "vocabulary.txt").write_text("from elsewhere")
    with job("index_images", outputs=("index.json",)):
        (results / "index.json").write_text(json.dumps(index))
    shards = tuple(f"codes/{number}.parquet" for number in range(5))
    (results / "codes").mkdir()
    for shard in shards:
        with job("encode_images", name=f"encode_images[{shard}]", inputs=("index.json",), outputs=(shard,)):
            (results / shard).write_text(shard)
    with job("train_model", inputs=(*shards, "vocabulary.txt"), outputs=("model",)):
        (results / "model").mkdir()
        (results / "model" / "weights").write_text("w")
    with job("compute_metrics", inputs=("model/weights", "index.json"), outputs=("metrics.json",)):
        (results / "metrics.json").write_text("{}")
    with job("make_table", inputs=("metrics.json",), outputs=("t.csv",)) as running:
        (results / "t.csv").write_text("t")
        running.result(
            table="t", cell="a", params={"e_th": 7.8}, metrics={"fid": 2.0}, sources=[results / "metrics.json"]
        )
    return results


def test_a_file_leads_back_to_images_code_and_settings(graph: Path):
    text = lineage.of_file(graph / "t.csv")
    head, tail = text.split("\n\nimages:\n")
    jobs = [line.strip().removeprefix("<- ").split("  ")[0] for line in head.splitlines() if "<- " in line]
    assert jobs == [
        "make_table",
        "compute_metrics",
        "train_model",
        "encode_images[codes/0.parquet]",
        "index_images",
        "index_images",
    ]
    assert "and 4 more of encode_images" in head
    assert head.count("(see above)") == 1
    assert "index.json: source folder, path /data/photos, count 9, num_classes 3, digest feed" in tail
    assert "vocabulary.txt  14 bytes  sha256 " in tail
    assert "commit " in tail
    assert ", 9 jobs" in tail
    assert str(graph / "tracking" / "spool") in tail


def test_a_folder_and_a_file_in_it_have_the_same_lineage(graph: Path):
    folder, file = (lineage.of_file(graph / path).split("\n", 1)[1] for path in ("model", "model/weights"))
    assert folder == file


def test_a_row_of_a_table_leads_back_to_its_sources(graph: Path):
    text = lineage.of_row("t", "a", graph)
    assert "  e_th = 7.8\n  fid = 2\n" in text
    assert "its numbers come from\n  metrics.json\n<- compute_metrics" in text
    with pytest.raises(InputError, match=r"no row t:b; its rows are:\n  t:a"):
        lineage.of_row("t", "b", graph)


def test_a_file_that_has_changed_since_has_no_lineage(graph: Path):
    (graph / "metrics.json").write_text('{"better": true}')
    with pytest.raises(InputError, match="compute_metrics made another version of it"):
        lineage.of_file(graph / "metrics.json")


def test_files_of_no_job_are_refused(graph: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no finished job has it among its outputs"):
        lineage.of_file(graph / "vocabulary.txt")
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match="does not lie in a results folder"):
        lineage.of_file(tmp_path / "x")
    with pytest.raises(InputError, match="does not exist"):
        lineage.of_file(graph / "nothing")
