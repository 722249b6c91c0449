import errno
import os
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from dpar import tracking
from dpar.commands import track
from dpar.errors import InputError, run_command
from dpar.mirror import status
from dpar.mirror import sync as mirror
from dpar.mirror.audit import audit
from dpar.mirror.store import (
    Store,
    existing_store,
    find_store,
    mlflow_environment,
    open_store,
    profile_of,
    writer_lock,
)


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
    for text in ("this is no database, it is a text\n" * 100, "a"):  # SQLite takes the latter for an empty database
        bad.write_text(text)
        with pytest.raises(InputError, match=r"sqlite:///.*bad\.db cannot be opened: .*; correct the address"):
            open_store(find_store(results, f"sqlite:///{bad}"))
        assert bad.read_text() == text


def test_a_place_where_nothing_can_be_written_is_said_at_once(results: Path):
    (results / "a file").touch()
    for place in (results / "a file", Path("/proc")):
        with pytest.raises(
            InputError, match=r"no tracking store can be made at .*mlflow\.db \(.*\); make room, or give"
        ):
            open_store(find_store(results, f"sqlite:///{place / 'mlflow.db'}"))


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
    with writer_lock(store) as first, writer_lock(store, wait=False) as second:
        assert (first, second) == (True, False)
    with writer_lock(store, wait=False) as third:
        assert third


def test_mlflow_is_kept_quiet_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    found = mlflow_environment()
    assert found["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert found["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


@pytest.fixture
def quick(migrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New databases are copies of a ready one."""
    monkeypatch.setattr("dpar.mirror.store._create_database", lambda path: shutil.copyfile(migrated, path))


ODD = [
    "a?b",
    "a#b",
    "a%20b",
    "blank é",
    "50%",
    "%3F?uri=true&mode=memory#x",
    "[x]*{y}",
    "a:b@c;d",
    "line\nbreak",
]


@pytest.mark.parametrize("name", ODD)
def test_a_store_lies_in_its_results_folder_whatever_that_is_called(name, tmp_path, quick, monkeypatch):
    monkeypatch.delenv("DPAR_TRACKING_URI", raising=False)
    elsewhere, results = tmp_path / "elsewhere", tmp_path / name / "results" / "demo"
    for folder in (elsewhere, results):
        folder.mkdir(parents=True)
    (results / "experiment.json").write_text('{"name": "demo"}')
    monkeypatch.chdir(elsewhere)
    with tracking.job(rule="train_model", experiment=results / "experiment.json", outputs=[results / "a.json"]):
        (results / "a.json").write_text("{}")
    store = find_store(results)
    assert store.database is not None
    counts = mirror.sync(store)
    assert counts is not None
    assert (counts.jobs, counts.problems) == (1, [])
    (found,) = audit(store, [results / "a.json"])
    assert found.verdict == "tracked"
    mirror.rebuild(store)
    with sqlite3.connect(store.database) as connection:
        assert connection.execute("select name, status from runs").fetchall() == [("train_model", "FINISHED")]
    outputs = list((results / "tracking" / "artifacts").rglob("a.json"))
    assert [path.read_text() for path in outputs] == ["{}"]
    assert list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["elsewhere", name])
    assert [path.name for path in (tmp_path / name).iterdir()] == ["results"]


def test_a_database_given_by_its_address_may_have_an_odd_name_too(results: Path, job):
    store = find_store(results, f"sqlite:///{results / 'what?.db'}")
    assert store.describe() == f"sqlite:///{results / 'what?.db'}"
    with job("train"):
        pass
    mirror.sync(store)
    assert (results / "what?.db").stat().st_size > 100_000
    assert not (results / "what").exists()


def test_a_folder_whose_name_mlflow_cannot_write_down_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"udcff' is no UTF-8, as MLflow needs; rename it"):
        find_store(tmp_path / "\udcff")


@pytest.fixture
def unopened(results: Path, store: Store, job) -> Path:
    """A database of one job that this process has not opened under its usual address, so that MLflow looks at it."""
    with job("train", outputs=("a.json",)):
        (results / "a.json").write_text("{}")
    assert store.database is not None
    mirror.sync(replace(store, uri=store.uri.replace("sqlite:", "sqlite+pysqlite:")))
    return store.database


def spoil(database: Path, harm: str) -> None:
    content = database.read_bytes()
    if harm == "cut":
        database.write_bytes(content[: len(content) // 2])
    elif harm == "overwritten":
        database.write_bytes(b"?" * len(content))
    else:
        statement = {
            "newer": "update alembic_version set version_num = 'f0f0f0f0f0f0'",
            "older": "update alembic_version set version_num = '1a0cddfcaa16'",
            "deleted": "update experiments set lifecycle_stage = 'deleted'",
        }[harm]
        with sqlite3.connect(database) as connection:
            connection.execute(statement)


@pytest.mark.parametrize("harm", ["newer", "older", "cut", "overwritten", "deleted"])
def test_a_store_that_cannot_be_used_is_made_again_by_the_command_that_is_named(
    results: Path, unopened: Path, harm: str, query, capsys, quick
):
    spoil(unopened, harm)
    for action, expected in (
        *(("sync", 2), ("status", 0), ("views", 2)),
        *(("rebuild", 0), ("sync", 0), ("status", 0)),
    ):
        assert run_command(track.main, [action, "--results", str(results)]) == expected
    out, err = capsys.readouterr()
    assert (out + err).count("`dpar track rebuild` to make the store again from the records") == 3
    assert "brings them" not in out
    assert "0 jobs with news" in out
    assert "lacks news of 0 of 1 jobs" in out
    assert query("select name, status, lifecycle_stage from runs") == [("train", "FINISHED", "active")]


@pytest.mark.parametrize("harm", ["newer", "older", "deleted"])
def test_a_store_that_is_not_the_folders_own_is_mended_by_what_is_said(results: Path, unopened: Path, harm: str):
    from click.testing import CliRunner
    from mlflow.experiments import commands

    spoil(unopened, harm)
    database = unopened.rename(results.parent / "everybodys.db")
    store = find_store(results, f"sqlite:///{database}")
    with pytest.raises(InputError) as raised:
        mirror.sync(store)
    said = str(raised.value)
    if harm != "deleted":
        cure = {
            "newer": "install the version that it was made with",
            "older": f"then run `mlflow db upgrade {store.uri}`",
        }
        assert cure[harm] in said
        return
    assert f"`export MLFLOW_TRACKING_URI={store.uri}; mlflow experiments restore --experiment-id " in said
    for identity in re.findall(r"restore --experiment-id (\d+)", said):
        done = CliRunner().invoke(
            commands, ["restore", "--experiment-id", identity], env={"MLFLOW_TRACKING_URI": store.uri}
        )
        assert done.exit_code == 0, done.output
    counts = mirror.sync(store)
    assert counts is not None
    assert counts.problems == []


def test_a_run_that_was_deleted_in_mlflow_comes_back_with_the_next_sync(results: Path, store: Store, job, query):
    with job("make_table") as running:
        running.result(table="t", cell="row", params={}, metrics={"fid": 2}, sources=[])
    mirror.sync(store)
    client = existing_store(store)
    for name in ("t", "make_table"):
        (run,) = query("select run_uuid from runs where name = ?", name)
        client.delete_run(run[0])
    assert "lacks news of 1 of 1 jobs\n`dpar track sync` brings them" in status.report(store)
    mirror.sync(store)
    assert "lacks news of 0 of 1 jobs" in status.report(store)
    active = dict(query("select name, run_uuid from runs where lifecycle_stage = 'active'"))
    assert active.keys() == {"t", "make_table", "row"}
    parents = "select value from tags where key = 'mlflow.parentRunId' and run_uuid = ?"
    assert query(parents, active["row"]) == [(active["t"],)]


@pytest.mark.parametrize("make", [mirror.sync, mirror.rebuild])
def test_a_store_that_could_not_be_made_leaves_nothing_behind(results: Path, make, monkeypatch):
    """Whatever is left of it on a full disk keeps the disk full."""
    store = find_store(results)
    assert store.database is not None

    def refuse(self, number):
        made = next(store.database.parent.glob(".*.partial"))
        made.with_name(f"{made.name}-journal").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mlflow.MlflowClient.delete_experiment", refuse)
    with pytest.raises(OSError, match="No space left"):
        make(store)
    assert [path.name for path in store.database.parent.iterdir()] == ["sync.lock"]


def test_what_a_killed_sync_left_undone_is_not_done_to_a_new_store(results: Path, store: Store, job, quick):
    """SQLite keeps what it would undo next to the file, by its name."""
    with job("train"):
        pass
    mirror.sync(store)
    assert store.database is not None
    journals = [store.database.with_name(f"mlflow.db-{rest}") for rest in ("journal", "wal", "shm")]
    for file in journals:
        file.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(5000))
    mirror.rebuild(store)
    assert [file.name for file in journals if file.exists()] == []


@pytest.mark.parametrize("content", ["[]", '"x"', "5", "{}", '{"name": 5}', '{"name": ""}'])
def test_an_experiment_without_a_name_goes_by_its_folder(results: Path, content: str):
    (results / "experiment.json").write_text(content)
    assert profile_of(find_store(results)) == "demo"
