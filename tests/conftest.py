"""Fixtures of all tests."""

import signal
from pathlib import Path

import pytest
import torch

from dpar.mirror.store import find_store, open_store, writer_lock
from tests.connections import connections

__all__ = ["connections"]

# Tests send these; `nohup` and a shell's background jobs have all their children ignore them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first, so that what is left at the end can be shared out among processes."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos next to the checkout; a test that asks for it is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the image pack ../shared/data is not next to this checkout")
    return folder


@pytest.fixture
def float64():
    """Computes in float64 for one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty, ready MLflow database; making one takes seconds, copying it none."""
    store = find_store(tmp_path_factory.mktemp("migrated"))
    with writer_lock(store):
        open_store(store)
    assert store.database is not None
    return store.database
