"""The MLflow store that shows the records: where it is, how it is made, who may write to it."""

import os
import re
import shlex
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpar import files
from dpar.errors import InputError, redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

URI_VARIABLE = "DPAR_TRACKING_URI"
KINDS = ("results", "train", "pipeline")
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
_THIS_MACHINE = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
_UNDONE = ("-journal", "-wal", "-shm")  # what SQLite keeps next to a database
_SQLITE = b"SQLite format 3\0"
_WELL_BUT_BUSY = ("database is locked", "disk is full", "disk I/O error", "readonly", "unable to open")


def mlflow_environment() -> dict[str, str]:
    """This process's environment with MLflow kept quiet: no telemetry, no pickles, no minutes of retries.

    What is on this machine is asked directly, whatever proxy leads elsewhere.
    """
    direct = [host for host in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",") if host]
    direct += [host for host in _THIS_MACHINE if host not in direct]
    return _ENVIRONMENT | dict(os.environ) | dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(direct))


@dataclass(frozen=True)
class Store:
    """An MLflow store for the results folder `results`.

    Args:
        uri: the address as MLflow takes it; it may hold a password.
        artifacts: the folder of its files; None where a server has its own place.
        database: the SQLite file, if the store is one.
    """

    results: Path
    uri: str = field(repr=False)
    artifacts: Path | None
    database: Path | None = None

    @property
    def embedded(self) -> bool:
        """Whether the store is the results folder's own."""
        return self.database == tracking_folder(self.results) / "mlflow.db"

    def describe(self) -> str:
        """The address without a password."""
        return f"sqlite:///{self.database}" if self.database else redacted(self.uri)

    def reason(self, error: BaseException) -> str:
        """The error in a line without passwords."""
        text = str(error).strip() or type(error).__name__
        return redacted(text.splitlines()[0], [self.uri])[:300]


def tracking_folder(results: str | Path) -> Path:
    """The folder of a results folder's records and, by default, of the store made from them."""
    return Path(results).resolve() / "tracking"


def profile_of(store: Store) -> str:
    """The name of the experiment whose results the store shows."""
    settings = store.results / "experiment.json"
    values = files.read_json(settings) if settings.exists() else {}
    name = values.get("name") if isinstance(values, dict) else None
    return name if isinstance(name, str) and name else store.results.name


def sqlite_uri(database: Path) -> str:
    """The address of an SQLite file; in that of a usual one, what follows `?` would be taken for options."""
    if "?" not in str(database):
        return f"sqlite:///{database}"
    return f"sqlite+pysqlite:///file:{urllib.parse.quote(os.fsencode(database))}?uri=true"


def find_store(results: str | Path, uri: str | None = None) -> Store:
    """The store at `uri`, else at $DPAR_TRACKING_URI, else the SQLite file of the results folder.

    Raises:
        InputError: the address has a typo, or names a kind of store that MLflow no longer has, or the results folder's
            name is not UTF-8.
    """
    folder = tracking_folder(results)
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"the name of {str(folder.parent)!a} is no UTF-8, as MLflow needs; rename it") from None
    uri = (uri or os.environ.get(URI_VARIABLE) or f"sqlite:///{folder / 'mlflow.db'}").strip()
    scheme, separator, path = uri.partition(":")
    shown, scheme = redacted(uri, [uri]), scheme.split("+")[0]
    if scheme not in _SCHEMES or not separator:
        raise InputError(
            f"{shown!r} is not a tracking address: expected one that begins with "
            f"{', '.join(f'{known}:' for known in _SCHEMES)} in --uri or ${URI_VARIABLE}"
        )
    if scheme != "sqlite":
        _check_address(uri, scheme, shown)
        return Store(Path(results).resolve(), uri, None if scheme in ("http", "https") else folder / "artifacts")
    if not path.startswith("////") or path.endswith("/"):
        raise InputError(f"{shown!r} must name the file by its whole path: sqlite:////folder/mlflow.db (four slashes)")
    database = Path(path.removeprefix("///"))
    return Store(Path(results).resolve(), sqlite_uri(database), folder / "artifacts", database)


def _check_address(uri: str, scheme: str, shown: str) -> None:
    """Refuses an address of a server or a database that no library could read."""
    try:
        parts = urllib.parse.urlsplit(uri)
        usable = parts.port != 0 and not re.search(r"\s", uri)
    except ValueError:
        usable = False
    if not usable:
        raise InputError(
            f"{shown!r} is not a tracking address: expected {scheme}://host:port/..., with a port from 1 to 65535 and "
            "no blanks; in a name or password write %2F for /, %3A for : and %40 for @"
        )
    if not parts.hostname:
        raise InputError(f"{shown!r} names no host; expected {scheme}://host:port/...")
    if scheme.startswith("http") and (parts.query or parts.fragment or "#" in uri or "?" in uri):
        raise InputError(f"{shown!r} is the address of a page; give the server's, {shown.partition('#')[0]!r} or so")


@contextmanager
def writer_lock(store: Store, *, wait: bool = True) -> Iterator[bool]:
    """Holds the results folder's lock for writing to stores; yields whether it was free (always true with `wait`).

    Raises:
        InputError: the folder cannot be written.
    """
    folder = tracking_folder(store.results)
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(files.file_lock(folder / "sync.lock", wait=wait))
        except OSError as error:
            raise InputError(
                f"cannot write {folder} ({error.strerror}); make room, or use a copy of {store.results} that you may "
                "change"
            ) from None
        yield lock is not None


def open_store(store: Store) -> "MlflowClient":
    """A client of the store, whose database is made first if there is none. Call it as the only writer.

    Raises:
        InputError: MLflow is not installed, the server does not answer, the database cannot be opened, an experiment
            has been deleted from it, or the results folder has been moved since the store was made.
    """
    os.environ.update(mlflow_environment())
    if store.database:  # each question opens the file that is there now, which `rebuild` may just have replaced
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    try:
        from mlflow import MlflowClient

        from dpar.mirror import server
    except ImportError as error:
        raise InputError(
            f"MLflow cannot be imported ({error}); the records wait in {tracking_folder(store.results) / 'spool'}: "
            "install it (pip install 'mlflow>=3.13,<3.18') and run `dpar track sync`"
        ) from None
    if store.database is None:
        server.check(store)
    elif not store.database.exists():
        _create_database(store.database)
    else:
        _check_database(store, store.database)
    try:
        client: Any = MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
        client = client if store.artifacts else server.Client(client, store)
        experiments = server.experiments(client)
    except server.ERRORS as error:
        reason = store.reason(error)
        raise InputError(
            f"the tracking store {store.describe()} cannot be opened: {reason}{_cure(store, reason)}"
        ) from None
    _check_experiments(store, experiments)
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
    with writer_lock(store):
        return open_store(store)


def _check_experiments(store: Store, experiments: "list[Experiment]") -> None:
    """Refuses a store from which an experiment of ours was deleted, or whose files lie where the folder was before."""
    names = [f"dpar/{profile_of(store)}/{kind}" for kind in KINDS]
    if deleted := [e for e in experiments if e.name in names and e.lifecycle_stage == "deleted"]:
        restore = "; ".join(f"mlflow experiments restore --experiment-id {e.experiment_id}" for e in deleted)
        cure = "run `dpar track rebuild` to make the store again from the records"
        if not store.embedded:
            cure = (
                f"bring back what it had with `export MLFLOW_TRACKING_URI={shlex.quote(store.describe())}; {restore}`"
            )
        raise InputError(f"{', '.join(e.name for e in deleted)} was deleted in MLflow ({store.describe()}); {cure}")
    if store.embedded and store.artifacts:
        for experiment in (e for e in experiments if e.lifecycle_stage == "active"):
            if not experiment.artifact_location.startswith(store.artifacts.as_uri()):
                raise InputError(
                    f"the store of {store.results} keeps its files in {experiment.artifact_location}: the folder has "
                    "been moved or copied since; run `dpar track rebuild` to make the store again from the records"
                )


def _cure(store: Store, reason: str) -> str:
    """The remedy for `reason`, which keeps a database from being opened; empty where another message has it."""
    if any(passing in reason for passing in _WELL_BUT_BUSY):
        return ""
    if store.embedded:
        return "; run `dpar track rebuild` to make the store again from the records"
    found = re.search(r"found version (\w+)|revision identified by '(\w+)'", reason)
    if not found:
        return ""
    from mlflow.store import db_migrations

    versions = Path(str(db_migrations.__file__)).with_name("versions")
    if any(versions.glob(f"{found[1] or found[2]}_*.py")):
        return f"; it is older than this MLflow: make a copy of it, then run `mlflow db upgrade {store.describe()}`"
    return "; it is newer than this MLflow: install the version that it was made with, or a later one"


def _create_database(path: Path) -> None:
    """An empty store at `path`: made aside and renamed, because one whose making is broken off stays broken.

    Raises:
        InputError: nothing can be written there, which MLflow would try for minutes.
    """
    from mlflow import MlflowClient

    with database_aside(path) as aside:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(path)
            aside.touch()
        except OSError as error:
            raise InputError(
                f"no tracking store can be made at {path} ({error.strerror}); make room, or give another place with "
                f"--uri or ${URI_VARIABLE}"
            ) from None
        uri = sqlite_uri(aside)
        made = MlflowClient(tracking_uri=uri, registry_uri=uri)
        made.delete_experiment("0")  # "Default": nothing of ours goes there, and it would stand first in the list
        put_database(aside, path)


@contextmanager
def database_aside(path: Path) -> Iterator[Path]:
    """A name for a database next to another, which the block may put in its place; else nothing of it is left."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield aside
    finally:
        for rest in ("", *_UNDONE):
            with suppress(OSError):
                aside.with_name(aside.name + rest).unlink(missing_ok=True)


def _check_database(store: Store, path: Path) -> None:
    """Refuses a file of something else, which SQLite would take for an empty database if it is short."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_SQLITE))
    except OSError:
        return  # MLflow says why
    if head not in (b"", _SQLITE):
        cure = _cure(store, "") or "; correct the address, or give the name of a new file"
        raise InputError(
            f"the tracking store {store.describe()} cannot be opened: it is no SQLite database, but begins "
            f"{head!r}{cure}"
        )


def put_database(new: Path, path: Path) -> None:
    """Puts a whole database in the place of another, without what SQLite would still undo in the other."""
    for rest in _UNDONE:
        path.with_name(path.name + rest).unlink(missing_ok=True)
    os.replace(new, path)
