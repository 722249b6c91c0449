"""MLflow's own pages over the store of a results folder, on this machine only."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpar.errors import InputError, redacted
from dpar.mirror import sync as mirror
from dpar.mirror import views
from dpar.mirror.store import Store, mlflow_environment, open_store, tracking_folder, writer_lock

HOST = "127.0.0.1"
# The same machine for browsers, which ask nobody for names below `localhost` (RFC 6761). Under HOST itself MLflow's
# assistant covers a quarter of every page.
NAME = "dpar.localhost"


@contextmanager
def serving(store: Store, port: int, *, seconds: float = 300.0) -> Iterator[subprocess.Popen]:
    """A running server of the store on `port`, one process for the pages and no others; stopped at the end.

    Args:
        seconds: to wait until it answers.

    Raises:
        InputError: the port is taken, or the server does not start.
    """
    if store.artifacts is None:
        raise InputError(f"{store.describe()} is a server already: open that address in a browser")
    _check_free(port)
    log = tracking_folder(store.results) / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server"]  # not the address: all users may read command lines
    command += ["--default-artifact-root", store.artifacts.as_uri(), "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--x-frame-options", "DENY"]
    command += ["--allowed-hosts", ",".join(f"{host}:{port}" for host in (NAME, HOST, "localhost"))]
    command += ["--cors-allowed-origins", f"http://{NAME}:{port}"]
    environment = mlflow_environment() | {"MLFLOW_BACKEND_STORE_URI": store.uri}
    with open(log, "wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_until_healthy(server, port, seconds, log)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.write_text(redacted(log.read_text("utf-8", "replace"), [store.uri]), "utf-8")


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); give another with --port"
            ) from None


def _wait_until_healthy(server: subprocess.Popen, port: int, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        connection = http.client.HTTPConnection(HOST, port, timeout=2)  # directly, whatever proxy leads elsewhere
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (http.client.HTTPException, OSError):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise InputError(f"the MLflow server did not start; its own words are in {log}")


def links(store: Store, port: int) -> list[tuple[str, str]]:
    """Title and address of every saved view on a server at `port`, the results first."""
    with writer_lock(store):
        client = open_store(store)
    return [(title, f"http://{NAME}:{port}/{path}") for title, path in views.addresses(client)]


def run(store: Store, port: int, *, refresh: float) -> None:
    """Serves the store until the server ends or Ctrl-C, carrying news into it every `refresh` seconds.

    Raises:
        InputError: the store or the port cannot be used.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # so that the server never outlives us
    mirror.sync(store)
    with serving(store, port) as server:
        print(f"The dashboard of {store.results} is at http://{NAME}:{port} until Ctrl-C. Begin with:\n")
        for title, address in links(store, port):
            print(f"  {title}\n    {address}")
        print(f"\nFrom another machine: ssh -L {port}:{HOST}:{port} HERE, then the same addresses.")
        print(f"A browser that does not know {NAME}: write {HOST} in its place.", flush=True)
        try:
            while server.poll() is None:
                try:
                    server.wait(timeout=refresh)
                except subprocess.TimeoutExpired:
                    _refresh(store)
        except KeyboardInterrupt:
            print("\nstopping the dashboard")


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt


def _refresh(store: Store) -> None:
    try:
        mirror.sync(store, wait=False)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
