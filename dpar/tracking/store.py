"""The MLflow store that shows the records: where it is, how it is made, who may write to it."""

import fcntl
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dpar import files
from dpar.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI_VARIABLE = "DPAR_TRACKING_URI"
PATIENCE = 10.0  # seconds for a server to say that it is well
_SCHEMES = ("sqlite", "postgresql", "mysql", "http", "https")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is said once, in a line of ours
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default lets one call to a server that is away wait for 247 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def mlflow_environment() -> dict[str, str]:
    """This process's environment with MLflow kept quiet: no telemetry, no pickles, no minutes of retries."""
    return _ENVIRONMENT | dict(os.environ)


@dataclass(frozen=True)
class Store:
    """An MLflow store for the results folder `results`; `artifacts` is None where a server has its own place."""

    results: Path
    uri: str
    artifacts: Path | None

    @property
    def database(self) -> Path | None:
        """The SQLite file, if the store is one."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None

    @property
    def embedded(self) -> bool:
        """Whether the store is the results folder's own."""
        return self.database == tracking_folder(self.results) / "mlflow.db"

    def describe(self) -> str:
        """The address without a password."""
        return _without_password(self.uri)


def _without_password(uri: str) -> str:
    return re.sub(r"//([^:/@]+):[^@]*@", r"//\1:...@", uri)


def tracking_folder(results: str | Path) -> Path:
    """Where a results folder keeps its records and, by default, the store made from them."""
    return Path(results).resolve() / "tracking"


def profile_of(store: Store) -> str:
    """The name of the experiment whose results the store shows."""
    settings = store.results / "experiment.json"
    return files.read_json(settings).get("name", store.results.name) if settings.exists() else store.results.name


def find_store(results: str | Path, uri: str | None = None) -> Store:
    """The store at `uri`, else at $DPAR_TRACKING_URI, else the SQLite file of the results folder.

    Raises:
        InputError: the address has a typo, or names a kind of store that MLflow no longer has.
    """
    folder = tracking_folder(results)
    uri = uri or os.environ.get(URI_VARIABLE) or f"sqlite:///{folder / 'mlflow.db'}"
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    shown = _without_password(uri)
    if scheme not in _SCHEMES:
        raise InputError(
            f"{shown!r} is not a tracking address: expected one that begins with "
            f"{', '.join(f'{known}:' for known in _SCHEMES)} in --uri or ${URI_VARIABLE}"
        )
    if scheme == "sqlite" and not re.fullmatch(r"sqlite:////.+", uri):
        raise InputError(f"{shown!r} must name the file by its whole path: sqlite:////folder/mlflow.db (four slashes)")
    if scheme != "sqlite" and not parts.hostname:
        raise InputError(f"{shown!r} names no host; expected {scheme}://host:port/...")
    return Store(Path(results).resolve(), uri, None if scheme in ("http", "https") else folder / "artifacts")


@contextmanager
def only_writer(store: Store, *, wait: bool = True) -> Iterator[bool]:
    """Holds the results folder's lock for writing to stores; yields whether it was free (always true with `wait`)."""
    folder = tracking_folder(store.results)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "sync.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def open_store(store: Store) -> "MlflowClient":
    """A client of the store, whose database is made first if there is none. Call it as the only writer.

    Raises:
        InputError: MLflow is not installed, the server does not answer, the database cannot be opened, or the results
            folder has been moved since the store was made.
    """
    os.environ.update(mlflow_environment())
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise InputError(
            f"MLflow cannot be imported ({error}); the records wait in {tracking_folder(store.results) / 'spool'}: "
            "install it (pip install 'mlflow>=3.13,<3.18') and run `dpar track sync`"
        ) from None
    if store.uri.startswith("http"):
        _check_server(store)
    if store.database and not store.database.exists():
        _create_database(store.database)
    try:
        client = MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
        experiments = client.search_experiments()
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0][:300]
        raise InputError(f"the tracking store {store.describe()} cannot be opened: {reason}") from None
    if store.embedded and store.artifacts:
        for experiment in experiments:
            if not experiment.artifact_location.startswith(store.artifacts.as_uri()):
                raise InputError(
                    f"the store of {store.results} keeps its files in {experiment.artifact_location}: the folder has "
                    "been moved or copied since; run `dpar track rebuild` to make the store again from the records"
                )
    return client


def existing_store(store: Store) -> "MlflowClient":
    """A client of a store that is there; nothing is made.

    Raises:
        InputError: there is none yet, or as `open_store`.
    """
    if store.database and not store.database.exists():
        raise InputError(f"there is no tracking store {store.database} yet; run `dpar track sync`")
    if not tracking_folder(store.results).is_dir():
        raise InputError(f"{store.results} holds no records of jobs; give a results folder such as results/demo")
    with only_writer(store):
        return open_store(store)


def _check_server(store: Store) -> None:
    try:
        with urllib.request.urlopen(f"{store.uri.rstrip('/')}/health", timeout=PATIENCE) as answer:
            if answer.read().strip() == b"OK":
                return
        reason = "it answers, but not as MLflow does"
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    raise InputError(f"no MLflow server at {store.describe()} ({reason}); start it or mend --uri or ${URI_VARIABLE}")


def _create_database(path: Path) -> None:
    """An empty store at `path`: made aside and renamed, because one whose making is broken off stays broken."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    made = MlflowClient(tracking_uri=f"sqlite:///{aside}", registry_uri=f"sqlite:///{aside}")
    made.delete_experiment("0")  # "Default": nothing of ours goes there, and it would stand first in the list
    os.replace(aside, path)
