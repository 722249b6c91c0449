"""First screens of MLflow: descriptions of the experiments and saved views of their runs.

MLflow keeps a saved view in a tag of the experiment. The format is its own affair and may change with a major version;
nothing else depends on it, and `tables/` holds the same numbers as plain files.
"""

import base64
import json
import uuid
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dpar.mirror.runs import last_images, send_again_if_taken

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from dpar.mirror.runs import RunIndex

_PREFIX = "mlflow.sharedViewState."
_NAMESPACE = uuid.UUID("2a1f6d3a-51b3-5a39-8f61-0d4c1c9fb2a4")
_WRITTEN = 1_767_225_600_000  # milliseconds since 1970: fixed, so that writing a view again changes nothing
_LIMIT = 20_000  # characters of an experiment's tag

DESCRIPTIONS = {
    "results": (
        "The answers: one run for each row of each table, below one run for the table. Open the saved views "
        "(*Views* above the list, or the addresses that `dpar track ui` prints): every row with its settings and "
        "metrics, best first; then the same as charts: quality against threshold and patch length, quality against "
        "cost, and samples side by side. A row's description links to the jobs that its numbers come from, "
        "and theirs lead on to the data. `paper/...` holds the paper's number where it has one."
    ),
    "train": (
        "The trainings: tokenizer, entropy model, DPAR and the LlamaGen baseline, one run each and one for each "
        "further milestone. A training that was interrupted goes on in its run, without a step twice; values show up "
        "when a checkpoint covers them. Pictures by step are in the charts view; a model's page has its address, its "
        "digest and the numbers measured about it."
    ),
    "pipeline": (
        "All other jobs of the graph: index, codes, entropies, thresholds, samples, features, metrics, tables, "
        "figures. Each run lists what it read and who made that, what it made with size and sha256, its settings, code "
        "commit, machine and time."
    ),
}


def install(index: "RunIndex", kind: str) -> None:
    """Writes description and views of an experiment where they differ from what is there."""
    experiment = index.experiments[kind]
    # The kind makes MLflow show training pages; it would guess from the runs, and sometimes take them for chats.
    wanted = {"mlflow.note.content": DESCRIPTIONS[kind], "mlflow.experimentKind": "custom_model_development"}
    for name, state in _states(kind, list(index.stored(kind))):
        wanted[_tag(name)] = encode_view(name, state)
    for key, value in wanted.items():
        if experiment.tags.get(key) != value and len(value) <= _LIMIT:
            tag = experiment.experiment_id, key, value
            send_again_if_taken(lambda tag=tag: index.client.set_experiment_tag(*tag))


def _tag(name: str) -> str:
    """The tag of a view: the same for the same name, so that writing a view again replaces it."""
    return f"{_PREFIX}{uuid.uuid5(_NAMESPACE, name).hex[:12]}"


def encode_view(name: str, state: dict[str, Any]) -> str:
    """A view as MLflow stores it: its name in the menu, and MLflow's state of the page."""
    packed = base64.b64encode(zlib.compress(json.dumps(state, sort_keys=True).encode(), 9)).decode()
    value = {"name": name, "createdAt": _WRITTEN, "updatedAt": _WRITTEN, "state": f"deflate;{packed}"}
    return json.dumps(value)


def addresses(client: "MlflowClient") -> Iterator[tuple[str, str]]:
    """Title and address, relative to the server's, of every view of ours in the store: results before trainings."""
    order = list(DESCRIPTIONS)
    ours = [e for e in client.search_experiments() if e.name.startswith("dpar/") and e.name.split("/")[-1] in order]
    for experiment in sorted(ours, key=lambda e: (e.name.split("/")[1], order.index(e.name.split("/")[-1]))):
        kind = experiment.name.split("/")[-1]
        for name, charts in _NAMES[kind]:
            if (tag := _tag(name)) not in experiment.tags:
                continue
            options = f"workflowType=machine_learning&viewStateShareKey={tag.removeprefix(_PREFIX)}"
            options += "&compareRunsMode=CHART" if charts else ""
            yield f"{experiment.name}: {name}", f"#/experiments/{experiment.experiment_id}/runs?{options}"


_NAMES = {
    "results": (("1 Every row, best first", False), ("2 What decides quality and cost", True)),
    "train": (("1 Trainings", False), ("2 Curves and pictures", True)),
    "pipeline": (("1 All jobs", False),),
}


def _states(kind: str, runs: "list[Run]") -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and state of each view of an experiment whose runs are `runs`; none while there is nothing to show."""
    if runs:
        build = {"results": _results, "train": _train, "pipeline": _pipeline}[kind]
        yield from zip((name for name, _ in _NAMES[kind]), build(runs), strict=True)


def _results(runs: "list[Run]") -> list[dict[str, Any]]:
    rows = [run for run in runs if run.data.tags.get("dpar.kind") == "cell"]
    varying, constant = _params(rows)
    metrics = _metrics(rows)
    best, smaller_is_better = _quality(metrics)
    metrics = sorted(metrics, key=lambda key: key != best)
    if any(f"{best}_sd" in run.data.metrics for run in rows):
        metrics.insert(1, f"{best}_sd")  # whether the order of two rows means anything
    columns = [_column("params", key) for key in varying] + [_column("metrics", key) for key in metrics]
    columns += [_column("params", key) for key in constant]
    columns.append(_column("tags", "dpar.commit"))
    table = _page("tags.`dpar.kind` = 'cell'", columns, best, ascending=smaller_is_better)
    charts = _Charts()
    across, along = _pick(varying, "threshold"), _pick(varying, "max_length")
    if best:
        quality = charts.section("Quality")
        charts.add(quality, "BAR", f"{best} of every row", metricKey=best)
        if across:
            charts.scatter(quality, (across, "PARAM"), best)
        if across and along:
            axes = [(across, "PARAM"), (along, "PARAM"), (best, "METRIC")]
            charts.add(quality, "CONTOUR", f"{best} over {across} and {along}", **_axes("xyz", axes))
        numeric = [key for key in varying if all(_is_number(run.data.params.get(key, "0")) for run in rows)]
        if numeric:
            charts.add(quality, "PARALLEL", "Settings and quality", selectedParams=numeric, selectedMetrics=[best])
        cost = next((key for key in metrics if key.startswith("cost/") and "gmac" in key.lower()), None)
        if cost:
            charts.scatter(charts.section("Cost"), (cost, "METRIC"), best)
    if any(run.data.tags.get("mlflow.loggedImages") for run in rows):
        charts.image(charts.section("Samples", **_LARGE), "samples", 0)
    # cards of pictures begin with the last row, which shall be the best
    return [table, _page("tags.`dpar.kind` = 'cell'", columns, best, not smaller_is_better, charts)]


_LARGE = {"columns": 3, "cardHeight": 1000}  # pixels: three runs' pictures below each other, each under its name
_FIRST = ("train/loss", "val/nll", "val/psnr")
_UNSMOOTHED = {"lineSmoothness": 0, "useGlobalLineSmoothing": True, "useGlobalXaxisKey": True, "xAxisKey": "step"}


def _train(runs: "list[Run]") -> list[dict[str, Any]]:
    names = {key for run in runs for key in run.data.metrics}
    shown = [key for key in (*_FIRST, "perf/images_per_s", "time/wall_s") if key in names]
    columns = [_column("attributes", "Status"), _column("tags", "dpar.attempts")]
    columns += [_column("metrics", key) for key in shown] + [_column("tags", "dpar.commit")]
    charts = _Charts()
    for title, group in (("Loss", ("train/", "val/")), ("Speed", ("perf/",))):
        curves = sorted((key for key in names if key.startswith(group)), key=lambda key: (key not in _FIRST, key))
        section = charts.section(title) if curves else ""
        for key in curves:
            charts.add(section, "LINE", key, metricKey=key, selectedMetricKeys=[key], **_UNSMOOTHED)
    last: dict[str, int] = {}
    for run in runs:
        last |= {key: max(step, last.get(key, 0)) for key, step in last_images(run.data.tags).items()}
    for key, step in sorted(last.items(), reverse=True):
        charts.image(charts.section("Pictures by step", **_LARGE), key, step)
    return [_page("", columns, None), _page("", columns, None, charts=charts)]


def _pipeline(runs: "list[Run]") -> list[dict[str, Any]]:
    columns = [_column("attributes", "Status"), _column("tags", "dpar.rule"), _column("metrics", "time/wall_s")]
    columns += [_column("metrics", "io/out_bytes"), _column("tags", "dpar.attempts"), _column("tags", "dpar.host")]
    return [_page("", [*columns, _column("tags", "dpar.commit")], None)]


def _params(rows: "list[Run]") -> tuple[list[str], list[str]]:
    """Names of the parameters that differ between rows, and of those that do not; what repeats another is left out."""
    first = ("table", "model", "threshold", "max_length")
    known = {key for run in rows for key in run.data.params}
    names = sorted(key for key in known - {"cell", "training"} if key.rpartition(".")[2] not in known - {key})
    names.sort(key=lambda key: first.index(key) if key in first else len(first))
    varying = [key for key in names if len({run.data.params.get(key) for run in rows}) > 1]
    return varying, [key for key in names if key not in varying]


def _metrics(rows: "list[Run]") -> list[str]:
    """Names of the metrics, quality and cost first; deviations left out."""
    first = ("eval/frechet_distance", "cost/training_gmacs", "cost/sampling_gmacs", "cost/training_s")
    groups = (*first, "patch/patch_length", "val/nll", "eval/", "val/", "paper/", "difference/", "patch/", "cost/")
    names = {key for run in rows for key in run.data.metrics if not key.endswith("_sd")}
    ordered = (key for group in groups for key in sorted(names) if key.startswith(group))
    return list(dict.fromkeys(ordered))[:16]


def _quality(metrics: list[str]) -> tuple[str | None, bool]:
    """The metric that ranks rows, and whether small is good."""
    for key in ("eval/frechet_distance", "eval/fid", "val/nll"):
        if key in metrics:
            return key, True
    return next((key for key in metrics if key.startswith("eval/")), None), False


def _pick(params: list[str], name: str) -> str | None:
    return next((key for key in params if key.split(".")[-1] == name), None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(group: str, name: str) -> str:
    return f"{group}.`{name}`"


def _axes(names: Iterable[str], axes: list[tuple[str, str]]) -> dict[str, Any]:
    return {f"{name}axis": {"key": key, "type": kind} for name, (key, kind) in zip(names, axes, strict=True)}


class _Charts:
    """Sections and cards of a charts page; their identities follow from their titles."""

    def __init__(self) -> None:
        self.sections: list[dict[str, Any]] = []
        self.cards: list[dict[str, Any]] = []

    def section(self, title: str, **size: int) -> str:
        """The identity of the section with that title, which is made with the size of its cards if it is new."""
        identity = uuid.uuid5(_NAMESPACE, f"section {title}").hex
        if all(section["uuid"] != identity for section in self.sections):
            self.sections.append({"uuid": identity, "name": title, "display": True, "isReordered": True, **size})
        return identity

    def add(self, section: str, kind: str, title: str, **settings: Any) -> None:
        self.cards.append(
            {
                "uuid": uuid.uuid5(_NAMESPACE, f"card {section} {title}").hex,
                "type": kind,
                "displayName": title,
                "metricSectionId": section,
                "runsCountToCompare": 100,
                "deleted": False,
                "isGenerated": False,
                **settings,
            }
        )

    def image(self, section: str, key: str, step: int) -> None:
        self.add(section, "IMAGE", key.capitalize(), imageKeys=[key], step=step, showRunParams=False)

    def scatter(self, section: str, along: tuple[str, str], metric: str) -> None:
        self.add(section, "SCATTER", f"{metric} against {along[0]}", **_axes("xy", [along, (metric, "METRIC")]))


def _page(
    search: str, columns: list[str], order: str | None, ascending: bool = False, charts: _Charts | None = None
) -> dict[str, Any]:
    """The state of a page of runs."""
    state: dict[str, Any] = {
        "searchFilter": search,
        "orderByKey": _column("metrics", order) if order else "attributes.start_time",
        "orderByAsc": ascending,
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    if charts:
        state |= {"compareRunCharts": charts.cards, "compareRunSections": charts.sections, "viewMaximized": True}
    return state
