import http.client
import socket
import urllib.request
from pathlib import Path

import pytest

from dpar.errors import InputError
from dpar.mirror import dashboard
from dpar.mirror import sync as mirror
from dpar.mirror.store import Store, find_store


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_the_server_answers_on_this_machine_only_and_ends_with_the_block(results: Path, store: Store, job, port: int):
    with job("train_model"):
        pass
    mirror.sync(store)
    with dashboard.serving(store, port) as server:
        for host, allowed in ((f"dpar.localhost:{port}", True), (f"evil.example:{port}", False)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host})
            assert (connection.getresponse().status == 200) is allowed, host
            connection.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert b"mlflow" in answer.read().lower()
            assert answer.headers["X-Frame-Options"] == "DENY"
        addresses = dict(dashboard.links(store, port))
        assert addresses["dpar/demo/train: 1 Trainings"].startswith(f"http://dpar.localhost:{port}/#/experiments/")
        with (
            pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be used"),
            dashboard.serving(store, port),
        ):
            pass
    assert server.poll() is not None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_server_that_does_not_start_is_explained(results: Path, store: Store, port: int, monkeypatch):
    monkeypatch.setattr(dashboard.sys, "executable", "/bin/false")
    with (
        pytest.raises(InputError, match=r"did not start; its own words are in .*server\.log"),
        dashboard.serving(store, port),
    ):
        pass


def test_a_store_that_is_a_server_needs_no_other(results: Path, port: int):
    remote = find_store(results, "http://tracker:5000")
    with pytest.raises(InputError, match="is a server already: open that address"), dashboard.serving(remote, port):
        pass
