import sys
from pathlib import Path

import pytest

from dpar.mirror import status
from dpar.mirror import sync as mirror
from dpar.mirror.store import Store, find_store


def test_status_tells_what_each_job_said_and_what_the_store_lacks(results: Path, store: Store, job):
    with job("index_images"):
        pass
    mirror.sync(store)
    with pytest.raises(ValueError, match="odd"), job("encode_images"):
        raise ValueError("odd shard")
    with job("train_model", name="train_model[dpar]") as running:
        running.metrics({"train/loss": 1.0}, step=7)
        running.commit(7)
        lines = status.report(store).splitlines()
    index, encode, train = lines[1:4]
    assert index.startswith("FINISHED       1 ")
    assert index.endswith("index_images")
    assert encode.startswith("FAILED ")
    assert encode.endswith("encode_images  ValueError: odd shard  (not in MLflow yet)")
    assert train.startswith("RUNNING        1        7 ")
    assert "lacks news of 2 of 3 jobs" in lines[-2]
    mirror.sync(store)
    assert "lacks news of 0 of 3 jobs" in status.report(store)


def test_status_works_without_jobs_and_without_mlflow(
    results: Path, job, monkeypatch: pytest.MonkeyPatch, store: Store
):
    assert "no job has been recorded" in status.report(store)
    with job("index_images"):
        pass
    monkeypatch.setitem(sys.modules, "mlflow", None)
    text = status.report(store)
    assert "index_images" in text
    assert "MLflow: MLflow cannot be imported" in text


def test_status_before_the_first_sync(results: Path, job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DPAR_TRACKING_URI", raising=False)
    with job("index_images"):
        pass
    assert "lacks news of 1 of 1 jobs" in status.report(find_store(results))
