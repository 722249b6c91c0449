"""The runs of one results folder in an MLflow store, and how each is written to."""

import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpar.mirror.store import KINDS
from dpar.tracking.replay import Point, Run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as StoredRun

SMALL = 10 * 2**20  # bytes; larger files stay where they are and are named by address and digest
_BATCH = 990  # values a request; MLflow takes 1000 of all kinds together
_MODEL_FREE = ("system/", "time/", "io/")  # numbers about the job and not about the model
_NAMESPACE = uuid.UUID("6f2d3f0e-6a2b-5e0a-9b67-0f9c6c1d7c11")


LAST_IMAGES = "mlflow.dpar.images"


def last_images(tags: Mapping[str, str]) -> dict[str, int]:
    """The series of images of a run with these tags, and the last step of each."""
    return {key: step for key, step in json_tag(tags, LAST_IMAGES, {}).items() if isinstance(step, int)}


def json_tag(tags: Mapping[str, str], name: str, default: Any) -> Any:
    """Value of a tag of ours; `default` where there is none, or none of its type, since anybody may edit tags."""
    try:
        value = json.loads(tags.get(name, ""))
    except (ValueError, RecursionError):
        return default
    return value if isinstance(value, type(default)) else default


class RunWriter:
    """One run of the store. Its tag `mlflow.dpar.mirrored` says how much of its spool it shows already.

    (MLflow's pages hide tags that begin with `mlflow.`: ours of that kind are for this program and not for people.)

    Everything may be sent twice: names of files are fixed, and MLflow's key of a value holds run, name, time and step.
    """

    def __init__(self, client: "MlflowClient", run: "StoredRun"):
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.status: str = run.info.status
        self.tags: dict[str, str] = dict(run.data.tags)
        self._client = client
        place = json_tag(self.tags, "mlflow.dpar.mirrored", {})
        self._place = {"bytes": -1, "points": 0, "images": 0}
        self._place |= {key: value for key, value in place.items() if key in self._place and isinstance(value, int)}

    @property
    def key(self) -> str:
        """The key that the run is found by."""
        return self.tags["mlflow.dpar.key"]

    @property
    def bytes_seen(self) -> int:
        """The length of the spool's events when all of it had been carried over; -1 while that is not so."""
        return self._place["bytes"]

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets the tags that differ from what the run has."""
        from mlflow.entities import RunTag

        wanted = {entity_name(key): str(value)[:8000] for key, value in tags.items()}
        changed = {key: value for key, value in wanted.items() if self.tags.get(key) != value}
        for chunk in _chunks(list(changed.items()), 100):
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in chunk])
        self.tags |= changed

    def untag(self, key: str) -> None:
        """Removes a tag if the run has it."""
        if self.tags.pop(key, None) is not None:
            self._client.delete_tag(self.run_id, key)

    def params(self, params: Mapping[str, Any]) -> None:
        """Sets the parameters; they never change, and are sent before the first values."""
        from mlflow.entities import Param

        if "mlflow.dpar.mirrored" not in self.tags:
            for chunk in _chunks(list(params.items()), 100):
                batch = [Param(entity_name(key), str(value)[:6000]) for key, value in chunk]
                self._client.log_batch(self.run_id, params=batch)

    def points(self, points: list[Point], model_id: str | None = None) -> int:
        """Sends the values that are not shown yet and says how many these were.

        Args:
            points: all values of the run, in an order that does not change.
            model_id: the model that the numbers for the whole run are about.
        """
        from mlflow.entities import RunTag

        news = points[self._place["points"] :]
        for chunk in _chunks(news, _BATCH):
            self._place = self._place | {"bytes": -1, "points": self._place["points"] + len(chunk)}
            place = json.dumps(self._place)
            metrics = [_metric(point, model_id) for point in chunk]
            self._client.log_batch(self.run_id, metrics=metrics, tags=[RunTag("mlflow.dpar.mirrored", place)])
            self.tags["mlflow.dpar.mirrored"] = place
        return len(news)

    def about_model(self, points: list[Point], model_id: str) -> None:
        """Shows the numbers for the whole run on the page of a model too."""
        last = {point.key: point for point in points if point.step == 0}
        metrics = [_metric(p, model_id) for p in last.values() if not p.key.startswith(_MODEL_FREE)]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)

    def images(self, images: list, spool: Path) -> list[str]:
        """Sends the stepped images that are not shown yet; returns the faults of those that cannot be shown."""
        problems = []
        for image in images[self._place["images"] :]:
            problem = self.image(spool / image.file, image.key, image.step, image.timestamp)
            problems += [problem] if problem else []
            self._place = self._place | {"images": self._place["images"] + 1}
        return problems

    def image(self, file: Path, key: str, step: int, timestamp: int) -> str | None:
        """Sends an image as the two files that MLflow's image cards read; returns the fault if it cannot be shown."""
        from PIL import Image, UnidentifiedImageError

        label = re.sub(r"[^A-Za-z0-9_. -]", "~", key)
        unique = uuid.uuid5(_NAMESPACE, f"{self.key} {key} {step}")
        name = f"{label}+step+{step}+timestamp+{timestamp}+{unique}"
        with tempfile.TemporaryDirectory() as folder:
            full, small = Path(folder, f"{name}.png"), Path(folder, f"{name}+compressed.webp")
            try:
                shutil.copyfile(file, full)
                with Image.open(full) as image:
                    preview = image.convert("RGB")
                preview.thumbnail((512, 512))
            except (FileNotFoundError, UnidentifiedImageError) as error:
                return f"{file} cannot be shown: {error}"
            preview.save(small)
            self._client.log_artifacts(self.run_id, folder, "images")
        self.tag({"mlflow.loggedImages": "True", LAST_IMAGES: json.dumps(last_images(self.tags) | {label: step})})
        return None

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Shows a table that can be sorted and searched, whole each time."""
        path = f"tables/{name}.json"
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, f"{name}.json").write_text(json.dumps({"columns": columns, "data": rows}), "utf-8")
            self._client.log_artifacts(self.run_id, folder, "tables")
        known = json_tag(self.tags, "mlflow.loggedArtifacts", [])
        entry = {"path": path, "type": "table"}
        self.tag({"mlflow.loggedArtifacts": json.dumps(known if entry in known else [*known, entry])})

    def file(self, file: Path, folder: str) -> None:
        """Copies a small file into the run's artifacts; nothing if it is gone or large."""
        if file.exists() and file.stat().st_size <= SMALL:
            self._client.log_artifact(self.run_id, str(file), folder)

    def inputs(self, datasets: Iterable[tuple[str, str, str]], models: Iterable[str]) -> None:
        """Names what the run reads.

        Args:
            datasets: name, address and sha256 of each.
            models: ids of models in the store.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        read = [
            DatasetInput(
                Dataset(name[-500:], sha256[:36], "local", json.dumps({"uri": uri})),
                [InputTag("mlflow.data.context", "input"), InputTag("sha256", sha256)],
            )
            for name, uri, sha256 in datasets
        ]
        named = [LoggedModelInput(model) for model in models]
        send_again_if_taken(lambda: self._client.log_inputs(self.run_id, read, named))

    def model(self, name: str, weights: str, params: Mapping[str, Any], tags: Mapping[str, str], step: int) -> str:
        """The id of the model the run has made, which is created if need be: by address and digest, never a copy.

        Args:
            weights: sha256 of the file of weights.
            step: the training step it comes from; 0 if there is none.
        """
        from mlflow.entities import LoggedModelOutput

        query = f"source_run_id = '{self.run_id}'"
        for made in self._client.search_logged_models([self.experiment_id], filter_string=query):
            if made.tags.get("mlflow.dpar.weights") == weights:
                return made.model_id
        made = self._client.create_logged_model(
            self.experiment_id,
            name=re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-"),
            source_run_id=self.run_id,
            params={entity_name(key): str(value)[:6000] for key, value in params.items()},
            tags={"mlflow.model.isExternal": "true", "mlflow.dpar.weights": weights, **tags},
        )
        _given(made.model_id, f"model {name}")
        self._client.finalize_logged_model(made.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(made.model_id, step)])
        return made.model_id

    def resume(self) -> None:
        """Marks the run as running."""
        if self.status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
            self.status = "RUNNING"

    def end(self, status: str, time: int | None) -> None:
        """Marks the run as ended at `time` (milliseconds since 1970)."""
        self._client.set_terminated(self.run_id, status, time)
        self.status = status

    def done(self, size: int) -> None:
        """Notes that everything up to `size` bytes of the events is shown."""
        self._place = self._place | {"bytes": size}
        self.tag({"mlflow.dpar.mirrored": json.dumps(self._place)})


class RunIndex:
    """A store's entries of one results folder: its experiments, runs by key, and models by the digest of weights.

    Args:
        profile: the experiment's name.
        records: the identity of the results folder's records; several may share a server.
        artifacts: the folder for files, or None where a server has its own.
    """

    def __init__(self, client: "MlflowClient", profile: str, records: str, artifacts: Path | None):
        self.client = client
        self.records = records
        self.experiments: dict[str, Experiment] = {}
        self._runs: dict[str, RunWriter] = {}
        for kind in KINDS:
            name = f"dpar/{profile}/{kind}"
            place = f"{artifacts.as_uri()}/{kind}" if artifacts else None
            experiment = client.get_experiment_by_name(name) or _made(client, name, place)
            _given(experiment.experiment_id, f"experiment {name}")
            self.experiments[kind] = experiment
            for run in self.stored(kind):
                writer = RunWriter(client, run)
                self._runs[_given(writer.tags.get("mlflow.dpar.key"), f"run {writer.run_id}")] = writer
        self.models = dict(self._stored_models())

    def stored(self, kind: str) -> "Iterator[StoredRun]":
        """All runs of an experiment that come from this results folder."""
        query = f"tags.`mlflow.dpar.records` = '{self.records}'"
        return stored_runs(self.client, [self.experiments[kind].experiment_id], query)

    def _stored_models(self) -> Iterator[tuple[str, str]]:
        ids = [experiment.experiment_id for experiment in self.experiments.values()]
        for model in pages(lambda token: self.client.search_logged_models(ids, page_token=token)):
            if "mlflow.dpar.weights" in model.tags:
                yield model.tags["mlflow.dpar.weights"], model.model_id

    def get(self, key: str) -> RunWriter | None:
        """The run called `key`."""
        return self._runs.get(key)

    def keys(self, prefix: str) -> list[str]:
        """The names of runs that begin with `prefix`, those made first first."""
        return [key for key in self._runs if key.startswith(prefix)]

    def get_or_create(self, kind: str, key: str, tags: Mapping[str, str], run: Run) -> RunWriter:
        """The run called `key`, made with `tags` and the start of `run` if there is none."""
        if found := self._runs.get(key):
            return found
        all_tags = {"mlflow.dpar.key": key, "mlflow.dpar.records": self.records} | {
            k: str(v)[:8000] for k, v in tags.items()
        }
        experiment = self.experiments[kind].experiment_id
        made = self.client.create_run(
            experiment, start_time=run.started, tags=all_tags, run_name=all_tags["mlflow.runName"]
        )
        _given(made.info.run_id, f"run {key}")
        writer = self._runs[key] = RunWriter(self.client, made)
        return writer

    def delete(self, key: str) -> None:
        """Takes the run called `key` out of sight."""
        self.client.delete_run(self._runs.pop(key).run_id)


def send_again_if_taken(send: Callable[[], object]) -> None:
    """Sends what is for all folders of a server; where another made the same at this moment, it is there by now."""
    from mlflow.exceptions import MlflowException

    try:
        send()
    except MlflowException as error:
        if "constraint" not in str(error):
            raise
        send()


def _made(client: "MlflowClient", name: str, place: str | None) -> "Experiment":
    """A new experiment, or the one that another results folder has just made on the same server."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(name, artifact_location=place)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment = client.get_experiment_by_name(name)
    _given(experiment, f"experiment {name}")
    assert experiment is not None
    return experiment


def _given(identity: Any, what: str) -> Any:
    """`identity`, without which `what` cannot be found again.

    Raises:
        MlflowException: there is none, as from a server that is no MLflow.
    """
    from mlflow.exceptions import MlflowException

    if not identity:
        raise MlflowException(f"it names no {what}, as MLflow would")
    return identity


def stored_runs(client: "MlflowClient", experiment_ids: list[str], query: str = "") -> "Iterator[StoredRun]":
    """All runs of the experiments that `query` selects."""
    if not experiment_ids:  # MLflow would take its default experiment
        return iter(())
    return pages(lambda token: client.search_runs(experiment_ids, query, max_results=1000, page_token=token))


def pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """All that MLflow finds, page by page; `search` takes the token of a page."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def entity_name(key: str) -> str:
    """`key` as MLflow accepts the name of a metric, parameter or tag."""
    parts = [part for part in re.sub(r"[^\w./: -]", "_", key).split("/") if part.strip(". ")]
    return "/".join(parts)[:250] or "unnamed"


def _metric(point: Point, model_id: str | None) -> Any:
    from mlflow.entities import Metric

    value = point.value if point.step else _readable(point.value)
    value = value if abs(value) != float("inf") else float("nan")  # the store cannot hold it; the tag says what it was
    is_about_model = point.step == 0 and not point.key.startswith(_MODEL_FREE)
    return Metric(entity_name(point.key), value, point.timestamp, point.step, model_id if is_about_model else None)


def _readable(value: float) -> float:
    """A single number as a table should show it: whole numbers as they are, others to five digits."""
    return value if value != value or abs(value) == float("inf") or value == int(value) else float(f"{value:.5g}")


def readable_text(text: str) -> str:
    """A parameter as a table should show it: one that is a number is cut to five digits."""
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:.5g}" if "." in text and abs(number) < 1e5 else text


def _chunks(items: list, size: int) -> Iterator[list]:
    return (items[start : start + size] for start in range(0, len(items), size))
