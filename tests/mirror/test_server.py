"""Servers that are slow, ask who is there, or are no MLflow; all of them on this machine."""

import base64
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dpar.commands import track
from dpar.errors import InputError, run_command
from dpar.mirror import dashboard, status
from dpar.mirror import sync as mirror
from dpar.mirror.store import find_store, open_store

Answer = tuple[int, bytes]


class Speaking(BaseHTTPRequestHandler):
    """Answers every request with what the server's `answer` gives for it."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        code, body = self.server.answer(self)  # type: ignore[attr-defined]  # set by `serving`
        try:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has given up
            pass

    do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815  # as the base class wants it

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], Answer]) -> Iterator[str]:
    """Host and port of a server that answers so."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Speaking)
    server.daemon_threads = True
    server.answer = answer  # type: ignore[attr-defined]  # read by `Speaking`
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def mlflow(request: BaseHTTPRequestHandler, rest: Answer = (200, b"{}")) -> Answer:
    """What MLflow answers when it is asked whether it is well, and `rest` to everything else."""
    return {"/health": (200, b"OK"), "/version": (200, b"3.17.2")}.get(request.path, rest)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second try, which would only take time, and no names of the user's."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that leads nowhere."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")


def test_this_machine_is_asked_directly_and_not_through_a_proxy(results: Path, proxied):
    with serving(mlflow) as place:
        assert open_store(find_store(results, f"http://{place}")).search_experiments() == []
        port = int(place.rpartition(":")[2])
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            dashboard._wait_until_healthy(process, port, 5, results / "log")
            process.communicate(b"\n")


def test_what_is_elsewhere_is_asked_through_the_proxy(results: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def proxy(request: BaseHTTPRequestHandler) -> Answer:
        asked.append(request.path)
        return 502, b""

    with serving(proxy) as place:
        monkeypatch.setenv("http_proxy", f"http://{place}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        with pytest.raises(
            InputError, match=r"no MLflow server at http://tracker\.invalid \(it answers /health with st"
        ):
            open_store(find_store(results, "http://tracker.invalid"))
    assert asked == ["http://tracker.invalid/health"]


@pytest.mark.parametrize("by", ["name", "token", "address"])
def test_a_server_that_asks_for_a_password_is_given_it(results: Path, by: str, monkeypatch: pytest.MonkeyPatch):
    basic = base64.b64encode(b"me:s3cr/t").decode()
    wanted = "Bearer s3cr/t" if by == "token" else f"Basic {basic}"

    def guarded(request: BaseHTTPRequestHandler) -> Answer:
        return mlflow(request) if request.headers.get("Authorization") == wanted else (401, b"no")

    with serving(guarded) as place:
        with pytest.raises(InputError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"):
            open_store(find_store(results, f"http://{place}"))
        if by == "name":
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr/t")
        elif by == "token":
            monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr/t")
        uri = f"http://me:s3cr%2Ft@{place}" if by == "address" else f"http://{place}"
        store = find_store(results, uri)
        assert open_store(store).search_experiments() == []
        assert "s3cr" not in store.describe() + repr(store)


HTML = b"<html><body>Sign in\n</body></html>"


@pytest.mark.parametrize("body", [HTML, b"", b"OK", b'{"status": "up"}', b"\xff\xfe", b"x" * 100_000])
@pytest.mark.parametrize("code", [200, 204, 302, 403, 404, 429, 500, 503])
def test_whoever_is_no_mlflow_is_told_in_a_line(results: Path, code: int, body: bytes):
    with serving(lambda request: (code, b"" if code == 204 else body)) as place:
        with pytest.raises(
            InputError, match=r"no MLflow server at http://127.*(but not as MLflow does|status)"
        ) as said:
            open_store(find_store(results, f"http://{place}"))
        assert len(str(said.value).splitlines()) == 1
        assert len(str(said.value)) < 400


GARBAGE = [
    *(HTML, b"", b"[]", b"5", b"null", b'"text"', b"{", b"{}", b"\xff", b'{"experiment": 5}', b'{"experiments": [5]}'),
    *(b'{"experiment": {"experiment_id": {}}}', b'{"experiments": {"a": 1}}', b'{"error_code": 5}', b'{"message": []}'),
    b'{"experiment": {"experiment_id": "1", "name": "x", "tags": [{"key": "a"}]}, "experiment_id": "1"}',
    b'{"experiment": {"experiment_id": "1"}, "runs": [{"info": 5}]}',
    b'{"experiment": {"experiment_id": "1"}, "runs": [{}], "run": {}}',
    b'{"experiment": {"experiment_id": "1"}, "models": [{}], "run": {"info": {"run_id": ""}}}',
]


@pytest.mark.parametrize("code", [200, 400, 500])
@pytest.mark.parametrize("body", GARBAGE, ids=repr)
def test_an_answer_that_mlflow_would_not_give_is_told_in_a_line(results: Path, job, code, body, capsys):
    with job("train_model") as running:
        running.metrics({"train/loss": 1.0}, step=1)
    with serving(lambda request: mlflow(request, (code, body))) as place:
        uri = f"http://{place}"
        assert run_command(track.main, ["sync", "--results", str(results), "--uri", uri]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith("error: ")
        assert uri in said
        assert "MLflow: " in status.report(find_store(results, uri)) or code == 200


@pytest.mark.parametrize("slow", ["each answer", "within an answer"])
def test_a_server_that_is_slow_is_left_after_a_while_and_the_records_wait(
    results: Path, job, slow, monkeypatch: pytest.MonkeyPatch
):
    with job("train_model"):
        pass
    monkeypatch.setattr(mirror, "DEADLINE", 0.7)
    ended = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> Answer:
        if slow == "within an answer" and request.path.startswith("/api"):
            request.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not ended.wait(0.1):
                request.wfile.write(b"X: y\r\n")
        ended.wait(0.3)
        return mlflow(request)

    with serving(answer) as place:
        store = find_store(results, f"http://{place}")
        with pytest.raises(
            InputError, match=r"has not taken everything in 1 s; the rest waits on disk: `dpar track sync`"
        ):
            mirror.sync(store)
        ended.set()


SECRETS = [
    *("http://me:s3cret@127.0.0.1:9", "http://me:s3cret@127.0.0.1:notaport", "http://me:s3/s3cret@127.0.0.1:9"),
    *("http://me:s3@s3cret@127.0.0.1:9", "http://me:s3cret@", "htp://me:s3cret@host", "http://me:s3cret@[::1"),
    *("http://me:s3cret@127.0.0.1:99999", "http://:s3cret@127.0.0.1:9", "https://me:s3cret@127.0.0.1:9/x y"),
    *("http://me:s3cret#@127.0.0.1:9", "http://me:s3?s3cret@127.0.0.1:9", "http://me:s3cret@127.0.0.1:9/#/experiments"),
    *(
        "postgresql://me:s3cret@127.0.0.1:9/db",
        "postgresql://127.0.0.1:9/db?password=s3cret",
        "mysql://me:s3cret@host:x",
    ),
    *(
        "postgresql+nodriver://me:s3cret@127.0.0.1:9/db",
        "http://me:s%33cret@127.0.0.1:9",
        "http://me:s3cret@" + "x" * 300,
    ),
]


@pytest.mark.parametrize("uri", SECRETS)
@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_password_is_never_shown(results: Path, job, uri: str, given: str, capsys, monkeypatch: pytest.MonkeyPatch):
    with job("train_model"):
        pass
    arguments = ["--uri", uri] if given == "option" else []
    if given == "environment":
        monkeypatch.setenv("DPAR_TRACKING_URI", uri)
    for action in ("sync", "status", "views", "rebuild", "ui"):
        status = run_command(track.main, [action, "--results", str(results), *arguments])
        out, err = capsys.readouterr()
        assert status == (2 if err else 0)
        assert "s3cret" not in out + err
        assert "MLflow: " in out or err.count("\n") == 1


def test_a_database_that_another_server_answers_for_is_told_in_a_line(results: Path):
    pytest.importorskip("psycopg2", reason="pip install psycopg2-binary")
    with serving(mlflow) as place, pytest.raises(InputError, match="cannot be opened"):
        open_store(find_store(results, f"postgresql+psycopg2://me:s3cret@{place}/db"))
