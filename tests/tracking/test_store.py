import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from dpar.errors import InputError
from dpar.tracking import mirror
from dpar.tracking.store import Store, find_store, mlflow_environment, only_writer, open_store


def test_the_store_of_a_results_folder_lies_in_it(results: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DPAR_TRACKING_URI", raising=False)
    store = find_store(results)
    assert store.database == results / "tracking" / "mlflow.db"
    assert store.artifacts == results / "tracking" / "artifacts"
    assert store.embedded


def test_another_address_is_taken_from_the_option_before_the_environment(results: Path, monkeypatch):
    monkeypatch.setenv("DPAR_TRACKING_URI", "http://tracker:5000")
    assert find_store(results).uri == "http://tracker:5000"
    assert find_store(results).artifacts is None
    assert find_store(results, "https://other").uri == "https://other"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp://tracker:5000", "expected one that begins with sqlite:, postgresql:"),
        ("./mlruns", "is not a tracking address"),
        ("file:///tmp/mlruns", "is not a tracking address"),
        ("sqlite:///relative.db", "four slashes"),
        ("sqlite://", "four slashes"),
        ("http:tracker:5000", "names no host"),
        ("postgresql:///db", "names no host"),
    ],
)
def test_a_typo_in_an_address_is_explained(results: Path, uri: str, message: str):
    with pytest.raises(InputError, match=message):
        find_store(results, uri)


def test_passwords_are_not_shown(results: Path):
    shown = find_store(results, "postgresql+psycopg2://me:secret@db:5432/mlflow").describe()
    assert shown == "postgresql+psycopg2://me:...@db:5432/mlflow"
    with pytest.raises(InputError, match=r"me:\.\.\.@") as raised:
        find_store(results, "postgre://me:secret@db")
    assert "secret" not in str(raised.value)


def test_a_server_that_is_no_mlflow_is_told_from_one_that_is_away(results: Path, monkeypatch: pytest.MonkeyPatch):
    from contextlib import nullcontext
    from io import BytesIO

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: nullcontext(BytesIO(b"<html>")))
    with pytest.raises(InputError, match="it answers, but not as MLflow does"):
        open_store(find_store(results, "http://127.0.0.1:80"))


def test_a_missing_mlflow_is_explained(results: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"MLflow cannot be imported .* the records wait in"):
        open_store(find_store(results))


def test_a_new_database_is_whole_and_empty(migrated: Path):
    with sqlite3.connect(migrated) as connection:
        experiments = connection.execute("select name, lifecycle_stage from experiments").fetchall()
    assert experiments == [("Default", "deleted")]
    assert [path.name for path in migrated.parent.iterdir() if "partial" in path.name] == []


def test_a_file_that_is_no_database_is_named(results: Path):
    bad = results / "bad.db"
    bad.write_text("this is no database, it is a text\n" * 100)
    with pytest.raises(InputError, match=r"sqlite:///.*bad\.db cannot be opened"):
        open_store(find_store(results, f"sqlite:///{bad}"))


def test_a_results_folder_that_was_moved_is_noticed_and_can_be_rebuilt(results: Path, store: Store, job):
    with job("train"):
        pass
    mirror.sync(store)
    moved = results.parent / "moved"
    shutil.copytree(results, moved)
    with pytest.raises(InputError, match="moved or copied since; run `dpar track rebuild`"):
        mirror.sync(find_store(moved))
    mirror.rebuild(find_store(moved))
    with sqlite3.connect(moved / "tracking" / "mlflow.db") as connection:
        places = connection.execute("select artifact_uri from runs").fetchall()
    assert len(places) == 1
    assert places[0][0].startswith((moved / "tracking" / "artifacts").as_uri())


def test_one_writer_at_a_time(store: Store):
    with only_writer(store) as first, only_writer(store, wait=False) as second:
        assert (first, second) == (True, False)
    with only_writer(store, wait=False) as third:
        assert third


def test_mlflow_is_kept_quiet_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    found = mlflow_environment()
    assert found["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert found["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
