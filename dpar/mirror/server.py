"""Check that MLflow answers at an address, and in a line why not.

Imports MLflow; `dpar.mirror.store.open_store` has told it to keep quiet by then.
"""

import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from google.protobuf.json_format import Error as ProtobufError
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from dpar.errors import InputError
from dpar.mirror.runs import pages

if TYPE_CHECKING:
    from mlflow.entities import Experiment

    from dpar.mirror.store import Store

PATIENCE = 10.0  # seconds for a server to say that it is well
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ProtobufError)  # of whoever reads an odd answer
ERRORS = (MlflowException, SQLAlchemyError, ImportError, OSError)
_PORTS = {"postgresql": 5432, "mysql": 3306}
_PAGES = (("/health", r"OK"), ("/version", r"\d+\.\d+\S*"))


def check(store: "Store") -> None:
    """Asks whether anybody is there, for a database, or whether it is MLflow, for a server.

    Raises:
        InputError: nobody is, or somebody else.
    """
    parts = urlsplit(store.uri)
    kind = "MLflow server" if parts.scheme.startswith("http") else "database"
    try:
        if kind == "database":
            port = parts.port or _PORTS[parts.scheme.split("+")[0]]
            socket.create_connection((parts.hostname or "", port), PATIENCE).close()
            return
        reasons = (_objection(store, page, expected) for page, expected in _PAGES)
        reason = next(filter(None, reasons), None)
    except (*ERRORS, *_NONSENSE) as error:
        reason = store.reason(_first(error))
    if reason:
        raise InputError(f"no {kind} at {store.describe()} ({reason}); start it or mend --uri or $DPAR_TRACKING_URI")


def _objection(store: "Store", page: str, expected: str) -> str | None:
    """Why the answer of a page is not MLflow's."""
    credentials = get_default_host_creds(store.uri)
    answer: Any = http_request(
        credentials, page, "GET", timeout=PATIENCE, max_retries=0, raise_on_status=False, stream=True
    )
    text = next(answer.iter_content(1000), b"").decode(errors="replace").strip()
    answer.close()
    if answer.status_code == 401:
        return (
            "it asks who is there: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if answer.status_code == 200:
        return None if re.fullmatch(expected, text) else "it answers, but not as MLflow does"
    words = f": {text.splitlines()[0][:100]}" if text and "<" not in text else ""
    return f"it answers {page} with status {answer.status_code}{words}"


def _first(error: BaseException) -> BaseException:
    """The first of a chain of exceptions: the operating system's, not those of the libraries around it."""
    while before := error.__cause__ or error.__context__:
        error = before
    return error


class Client:
    """MLflow's client of a server; an answer that MLflow would not give is an `InputError`."""

    def __init__(self, client: MlflowClient, store: "Store"):
        self._client = client
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def ask(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except ERRORS:
                raise
            except _NONSENSE as error:
                raise InputError(
                    f"{self._store.describe()} answers as MLflow would not ({name}: {self._store.reason(error)}); the "
                    "records wait on disk: look at the server, then run `dpar track sync`"
                ) from None

        return ask


def experiments(client: MlflowClient) -> "list[Experiment]":
    """All experiments of a store, the deleted ones too."""
    return list(pages(lambda token: client.search_experiments(ViewType.ALL, page_token=token)))
