"""Which addresses the Python programs of a test have looked up, connected to or listened at."""

import ast
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

HOOK = """
import os, sys
_EVENTS = ("connect", "bind", "sendto", "getaddrinfo", "gethostbyname", "gethostbyaddr")
def _write(*line):
    descriptor = os.open(os.environ["CONNECTIONS_OF_A_TEST"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (repr(line) + chr(10)).encode())
    os.close(descriptor)
def _hook(event, arguments):
    kind, _, name = event.partition(".")
    if kind == "socket" and name in _EVENTS:
        place = arguments[1] if name in ("connect", "bind", "sendto") else arguments[0]
        place = place[0] if isinstance(place, tuple) else place
        _write(name, place if isinstance(place, (str, bytes, type(None))) else repr(place), sys.argv[:3])
_write("start", None, sys.argv[:1])
sys.addaudithook(_hook)
"""


class Connections:
    """The record that every Python process writes while the hook is on its path."""

    def __init__(self, file: Path):
        self.file = file

    def __iter__(self) -> Iterator[tuple[str, str | bytes | None, list[str]]]:
        return map(ast.literal_eval, self.file.read_text().splitlines())

    def processes(self) -> int:
        """How many processes were watched."""
        return sum(event == "start" for event, _, _ in self)

    def abroad(self) -> list[tuple[str, str | bytes | None, list[str]]]:
        """What left this machine, or was open to others."""
        return [line for line in self if line[0] != "start" and not _is_here(line[0], line[1])]


def _is_here(event: str, place: str | bytes | None) -> bool:
    """Whether an address is this machine's own; `bind` to all of its addresses is not."""
    name = os.fsdecode(place) if place else ""
    if name.startswith(("/", "\0")) or name == "localhost":
        return True
    if not name:
        return event != "bind"  # of no host: this machine's
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


@pytest.fixture
def connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connections:
    """Watches all Python processes that the test starts from now on."""
    folder = tmp_path / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOOK)
    file = tmp_path / "connections"
    file.touch()
    monkeypatch.setenv("CONNECTIONS_OF_A_TEST", str(file))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])))
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_TRACKING_URI", "DPAR_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return Connections(file)
