"""Lineage of a file, job by job, back to images, code and settings; read from manifests alone."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpar import files
from dpar.errors import InputError
from dpar.tracking.hashes import Artefact, portable_path, read_artefact
from dpar.tracking.ledger import JobManifest, Ledger, files_of, minute_of, read_events
from dpar.tracking.places import CONFIG, results_above
from dpar.tracking.replay import replay

_SHOWN_INPUTS = 4  # files named below a job


def results_of(path: Path) -> Path:
    """The results folder that `path` lies in.

    Raises:
        InputError: no folder above it holds records.
    """
    if (found := results_above(path)) is None:
        raise InputError(f"{path} does not lie in a results folder with records (results/<name>/tracking/spool)")
    return found


@dataclass
class Sources:
    """The jobs that a walk has met, how many with each commit and each settings, and what it ends at."""

    jobs: list[JobManifest] = field(default_factory=list)
    commits: Counter[str] = field(default_factory=Counter)
    settings: Counter[str] = field(default_factory=Counter)
    whole: dict[str, Path] = field(default_factory=dict)
    images: dict[str, None] = field(default_factory=dict)
    outside: dict[str, None] = field(default_factory=dict)

    def add(self, maker: JobManifest) -> None:
        """Counts a job."""
        self.jobs.append(maker)
        self.commits[_commit(maker)] += 1
        self.settings[maker.config] += 1
        self.whole.setdefault(maker.config, maker.spool / CONFIG)

    def facts(self) -> list[str]:
        """The same in few lines, without places on this machine."""
        lines = [f"code: commit {commit}, {count} jobs" for commit, count in self.commits.items()]
        lines += [f"settings: {name}, {count} jobs" for name, count in self.settings.items()]
        lines += [f"images: {line}" for line in self.images]
        lines += [f"given from outside: {line}" for line in self.outside]
        return [re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", line) for line in lines]

    def text(self) -> Iterator[str]:
        """The last lines of a lineage."""
        yield from ["", "images:", *(f"  {line}" for line in self.images or ("none",))]
        yield from ["given from outside:", *(f"  {line}" for line in self.outside or ("nothing",))]
        yield from ["code:", *(f"  commit {commit}, {count} jobs" for commit, count in self.commits.items())]
        yield "settings:"
        yield from (f"  {name}, {count} jobs: {self.whole[name]}" for name, count in self.settings.items())


def of_file(path: Path, results: Path | None = None) -> str:
    """The lineage of the file or folder `path` as a tree, and below it what the tree ends at.

    Raises:
        InputError: the file is missing, or no job of the results folder has made it as it is now.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give a file of a results folder, or TABLE:ROW")
    results = results or results_of(path)
    ledger = Ledger(results)
    artefact = read_artefact(path, results)
    makers = ledger.producers(artefact)
    if not makers:
        before = ledger.latest(portable_path(path, results))
        hint = f"{before.name} made another version of it" if before else "no finished job has it among its outputs"
        raise InputError(f"{path} (sha256 {artefact.sha256[:12]}) has no lineage: {hint}; `dpar track audit` says more")
    return _text(results, ledger, [f"{artefact.path}  sha256 {artefact.sha256[:12]}"], makers)


def of_row(table: str, row: str, results: Path) -> str:
    """The lineage of one row of a table of results.

    Raises:
        InputError: no finished job has recorded such a row.
    """
    ledger = Ledger(results)
    found: tuple[dict[str, Any], JobManifest] | None = None
    names: dict[str, None] = {}
    for manifest in ledger.manifests:
        for event in (event for run in replay(read_events(manifest.spool))[-1:] for event in run.results):
            names[f"{event['table']}:{event['cell']}"] = None
            if (event["table"], event["cell"]) == (table, row):
                found = event, manifest
    if found is None:
        known = "\n".join(f"  {name}" for name in names) or "  (none yet)"
        raise InputError(f"{results} has no row {table}:{row}; its rows are:\n{known}")
    event, manifest = found
    lines = [f"{table}:{row}"]
    lines += [f"  {key} = {value}" for key, value in event["params"].items()]
    lines += [f"  {key} = {float(value):.6g}" for key, value in event["metrics"].items()]
    lines.append(f"written by {manifest.name}, {minute_of(manifest.started)}; its numbers come from")
    makers: dict[Path, JobManifest] = {}
    for source in event["sources"]:
        maker = ledger.latest(source)
        lines.append(f"  {source}" + ("" if maker else "  (given from outside)"))
        if maker:
            makers[maker.spool] = maker
    return _text(results, ledger, lines, list(makers.values()))


def sources(results: Path, ledger: Ledger, makers: list[JobManifest]) -> Sources:
    """The sources of the jobs `makers` and of all jobs before them."""
    found = Sources()
    _walk(results, ledger, makers, "", {}, found)
    return found


def _text(results: Path, ledger: Ledger, head: list[str], makers: list[JobManifest]) -> str:
    found = Sources()
    tree = _walk(results, ledger, makers, "", {}, found)
    return "\n".join([*head, *tree, *found.text()])


def _commit(manifest: JobManifest) -> str:
    return (manifest.commit or "unknown")[:10] + (" with uncommitted changes" if manifest.dirty else "")


def _walk(
    results: Path, ledger: Ledger, makers: list[JobManifest], indent: str, seen: dict[Path, bool], sources: Sources
) -> list[str]:
    """The lines of the jobs `makers` and all before them; of several jobs of one rule, the first stands for all."""
    lines: list[str] = []
    alike = Counter(maker.rule for maker in makers)
    shown: set[str] = set()
    for maker in makers:
        visible, again = maker.rule not in shown, maker.spool in seen
        printed = seen.get(maker.spool, False)
        if visible:
            shown.add(maker.rule)
            others = f", and {alike[maker.rule] - 1} more of {maker.rule}" if alike[maker.rule] > 1 else ""
            lines.append(f"{indent}<- {maker.name}  {minute_of(maker.started)}{others}{'  (see above)' * printed}")
        seen[maker.spool] = printed or visible
        if again:
            continue
        sources.add(maker)
        sources.images |= dict.fromkeys(_images(results, maker))
        before: dict[Path, JobManifest] = {}
        for artefact in maker.inputs:
            found = ledger.producers(artefact)
            before |= {manifest.spool: manifest for manifest in found}
            if not found:
                sources.outside[f"{artefact.path}  {artefact.bytes} bytes  sha256 {artefact.sha256}"] = None
        names = [f"{indent}     {artefact.path}  sha256 {artefact.sha256[:12]}" for artefact in maker.inputs]
        hidden = len(names) - _SHOWN_INPUTS
        names = names[:_SHOWN_INPUTS] + ([f"{indent}     and {hidden} more files"] if hidden > 0 else [])
        deeper = _walk(results, ledger, list(before.values()), indent + "   ", seen, sources)
        lines += [*names, *deeper] if visible else []
    return lines


def _images(results: Path, maker: JobManifest) -> Iterator[str]:
    """Origin of the images, from the index that `maker` wrote."""
    if maker.rule != "index_images":
        return
    for artefact in maker.outputs:
        yield from (_index_line(results, artefact, path) for path, _ in files_of(artefact) if path.endswith(".json"))


def _index_line(results: Path, artefact: Artefact, path: str) -> str:
    file = results / path
    if not file.exists():
        return f"{path} (deleted since; sha256 {artefact.sha256})"
    index = files.read_json(file)
    described = {key: index[key] for key in ("source", "path", "count", "num_classes", "digest") if key in index}
    return f"{path}: " + ", ".join(f"{key} {value}" for key, value in described.items())
