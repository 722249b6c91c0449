"""A results folder to record jobs in, and an MLflow store for it that need not be migrated in every test."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dpar import tracking
from dpar.mirror.store import Store, find_store


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty results folder of the experiment `demo`."""
    folder = tmp_path / "results" / "demo"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"name": "demo", "seed": 0}))
    return folder


@pytest.fixture
def job(results: Path) -> Callable[..., AbstractContextManager[tracking.Job]]:
    """`tracking.job` in `results`, with paths relative to it."""

    def start(rule: str, *, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = (), **settings):
        return tracking.job(
            rule=rule,
            experiment=results / "experiment.json",
            inputs=[results / path for path in inputs],
            outputs=[results / path for path in outputs],
            **settings,
        )

    return start


@pytest.fixture
def store(results: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The embedded store of `results`."""
    monkeypatch.delenv("DPAR_TRACKING_URI", raising=False)
    found = find_store(results)
    assert found.database is not None
    found.database.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(migrated, found.database)
    return found


@pytest.fixture
def query(store: Store) -> Callable[..., list[tuple]]:
    """Rows of the store's database, read without MLflow."""

    def ask(sql: str, *values: object) -> list[tuple]:
        assert store.database is not None
        with sqlite3.connect(store.database) as connection:
            return connection.execute(sql, values).fetchall()

    return ask


@pytest.fixture
def dump(store: Store) -> Callable[[], tuple[list[str], dict[str, bytes]]]:
    """Everything in the store: its database as SQL, and the bytes of its files by path."""

    def everything() -> tuple[list[str], dict[str, bytes]]:
        assert store.database is not None
        assert store.artifacts is not None
        with sqlite3.connect(store.database) as connection:
            rows = list(connection.iterdump())
        return rows, {str(path): path.read_bytes() for path in _files(store.artifacts)}

    return everything


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
