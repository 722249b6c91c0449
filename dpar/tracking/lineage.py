"""What a file was made from, job by job, back to images, code and settings; read from manifests alone."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpar import files
from dpar.errors import InputError
from dpar.tracking.hashes import Artefact, portable_path, read_artefact
from dpar.tracking.ledger import Ledger, Manifest, files_of, read_events
from dpar.tracking.replay import replay

_ALIKE = 3  # jobs of one rule shown below one job


def results_of(path: Path) -> Path:
    """The results folder that `path` lies in.

    Raises:
        InputError: no folder above it holds records.
    """
    for folder in path.resolve().parents:
        if (folder / "tracking" / "spool").is_dir():
            return folder
    raise InputError(f"{path} does not lie in a results folder with records (results/<name>/tracking/spool)")


@dataclass
class _Sources:
    """What a walk ends at."""

    commits: dict[str, None] = field(default_factory=dict)
    configs: dict[str, None] = field(default_factory=dict)
    images: dict[str, None] = field(default_factory=dict)
    outside: dict[str, None] = field(default_factory=dict)


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
    found: tuple[dict[str, Any], Manifest] | None = None
    names: dict[str, None] = {}
    for manifest in ledger.manifests:
        for event in replay(read_events(manifest.spool))[-1].results:
            names[f"{event['table']}:{event['cell']}"] = None
            if (event["table"], event["cell"]) == (table, row):
                found = event, manifest
    if found is None:
        known = "\n".join(f"  {name}" for name in names) or "  (none yet)"
        raise InputError(f"{results} has no row {table}:{row}; its rows are:\n{known}")
    event, manifest = found
    lines = [f"{table}:{row}"]
    lines += [f"  {key} = {value}" for key, value in {**event["params"], **event["metrics"]}.items()]
    lines.append(f"written by {_job_line(manifest)}; its numbers come from")
    makers: dict[Path, Manifest] = {}
    for source in event["sources"]:
        maker = ledger.latest(source)
        lines.append(f"  {source}" + ("" if maker else "  (given from outside)"))
        if maker:
            makers[maker.spool] = maker
    return _text(results, ledger, lines, list(makers.values()))


def _text(results: Path, ledger: Ledger, head: list[str], makers: list[Manifest]) -> str:
    sources = _Sources()
    lines = [*head, *_walk(results, ledger, makers, "", set(), sources)]
    lines.append("")
    for title, found in (
        ("images", sources.images),
        ("code", sources.commits),
        ("settings", sources.configs),
        ("given from outside", sources.outside),
    ):
        lines += [f"{title}:", *(f"  {text}" for text in found or ("none",))]
    return "\n".join(lines)


def _job_line(manifest: Manifest) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.started))
    return f"{manifest.name}  commit {_commit(manifest)}  settings {manifest.config}  {when}"


def _commit(manifest: Manifest) -> str:
    return (manifest.commit or "unknown")[:10] + ("+changes" if manifest.dirty else "")


def _walk(
    results: Path, ledger: Ledger, makers: list[Manifest], indent: str, seen: set[Path], sources: _Sources
) -> Iterator[str]:
    shown: dict[str, int] = {}
    hidden: dict[str, int] = {}
    for maker in makers:
        again = maker.spool in seen
        shown[maker.rule] = shown.get(maker.rule, 0) + 1
        visible = shown[maker.rule] <= _ALIKE
        if visible:
            yield f"{indent}<- {_job_line(maker)}" + ("  (see above)" if again else "")
        else:
            hidden[maker.rule] = hidden.get(maker.rule, 0) + 1
        if again:
            continue
        seen.add(maker.spool)
        sources.commits[_commit(maker)] = None
        sources.configs[f"{maker.config} ({maker.experiment}), whole in {maker.spool / 'experiment.json'}"] = None
        sources.images |= dict.fromkeys(_images(results, maker))
        below: dict[Path, Manifest] = {}
        for artefact in maker.inputs:
            found = ledger.producers(artefact)
            below |= {manifest.spool: manifest for manifest in found}
            origin = "" if found else "  (given from outside)"
            if not found:
                sources.outside[f"{artefact.path}  {artefact.bytes} bytes  sha256 {artefact.sha256}"] = None
            if visible and len(maker.inputs) <= 20:
                yield f"{indent}     {artefact.path}  sha256 {artefact.sha256[:12]}{origin}"
        deeper = _walk(results, ledger, list(below.values()), indent + "   ", seen, sources)
        yield from deeper if visible else [line for line in deeper if not line]
    for rule, count in hidden.items():
        yield f"{indent}<- and {count} more jobs of {rule}"


def _images(results: Path, maker: Manifest) -> Iterator[str]:
    """Where the pictures came from, as the index of images that `maker` wrote says."""
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
