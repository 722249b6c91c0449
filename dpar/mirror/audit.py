"""Whether every output of the graph belongs to a finished run that has its digest."""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dpar import files
from dpar.errors import InputError
from dpar.mirror.runs import stored_runs
from dpar.mirror.store import Store, existing_store, profile_of
from dpar.tracking.hashes import Artefact, content_files, portable_path
from dpar.tracking.ledger import files_of, minute_of
from dpar.tracking.makers import ACCEPTED, Makers

GOOD = ("tracked", "accepted")
_GONE_ON_PURPOSE = "removed temp file"


@dataclass(frozen=True)
class Finding:
    """The audit's finding for one file: `tracked`, `accepted` by hand, `missing`, `untracked` or `changed`."""

    file: str
    verdict: str
    detail: str


def graph_outputs(snakefile: Path, configfile: Path, directory: Path) -> list[Path]:
    """Every output that the graph lists for an experiment, by `snakemake --summary`.

    Args:
        directory: the folder that the run was made in, to which the graph's paths are relative.

    Raises:
        InputError: snakemake cannot read the graph, or write in the folder.
    """
    files.check_writable(directory, "snakemake keeps its notes, also when it only lists outputs")
    command = [sys.executable, "-m", "snakemake", "--summary", "--cores", "1", "--snakefile", str(snakefile)]
    command += ["--configfile", str(configfile.resolve()), "--directory", str(directory)]
    finished = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    header, *rows = [line.split("\t") for line in finished.stdout.splitlines() if "\t" in line] or [[]]
    if finished.returncode or "output_file" not in header:
        last = (finished.stderr or finished.stdout).strip().splitlines()[-5:]
        raise InputError(f"`{' '.join(command)}` failed:\n" + "\n".join(f"  {line}" for line in last))
    name, status = header.index("output_file"), header.index("status")
    return [directory / row[name] for row in rows if row[status] != _GONE_ON_PURPOSE]


def audit(store: Store, outputs: Iterable[Path]) -> list[Finding]:
    """A finding for every file among `outputs` (of a folder: every file in it), each read in full.

    Raises:
        InputError: the store cannot be read.
    """
    tracked, makers = _finished_outputs(store), Makers(store.results, keep=False)
    findings: dict[str, Finding] = {}
    for output in outputs:
        if not output.exists():
            findings[str(output)] = Finding(str(output), "missing", "the graph lists it, but it is not there")
            continue
        for file in content_files(output):
            known = tracked.get(portable_path(file, store.results), {})
            if not known:
                found = "untracked", _why_untracked(makers, portable_path(file, store.results))
            elif run := known.get(files.sha256_file(file)):
                found = "accepted" if run.startswith(ACCEPTED) else "tracked", run
            else:
                runs = ", ".join(sorted(set(known.values())))
                found = "changed", f"not what {runs} made: its bytes differ"
            findings[str(file)] = Finding(str(file), *found)
    return list(findings.values())


def _why_untracked(makers: Makers, path: str) -> str:
    """The record of a file that no finished run of the store has."""
    if (found := makers.ledger.last(path)) is None:
        return "no finished run has it among its outputs"
    manifest, file = found
    now = "" if makers.digest_of(path) == file.sha256 else ", and its bytes are others now"
    later = makers.ended_badly((manifest.name,))
    cure = ": run it again" if later else "; MLflow does not have that run: `dpar track sync`, or `dpar track rebuild`"
    return f"{manifest.name} made it on {minute_of(manifest.ended)}{now}{later}{cure}"


def _finished_outputs(store: Store) -> dict[str, dict[str, str]]:
    """For every path the digests that finished runs of the store have for it, with the name of the run."""
    client = existing_store(store)
    from mlflow.exceptions import MlflowException  # only now: `existing_store` has told MLflow to keep quiet

    experiments = [client.get_experiment_by_name(f"dpar/{profile_of(store)}/{kind}") for kind in ("pipeline", "train")]
    ids = [experiment.experiment_id for experiment in experiments if experiment]
    found: dict[str, dict[str, str]] = {}
    for run in stored_runs(client, ids, "attributes.status = 'FINISHED'"):
        if "dpar.outputs" not in run.data.tags:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = client.download_artifacts(run.info.run_id, "provenance/manifest.json", folder)
            except (MlflowException, OSError):  # a run without its manifest proves nothing
                continue
            for output in files.read_json(path)["outputs"]:
                for name, sha256 in files_of(Artefact.from_json(output)):
                    found.setdefault(name, {})[sha256] = run.info.run_name or run.info.run_id
    return found


def report(findings: list[Finding]) -> str:
    """The findings as text: how many of each kind, then every file that is not tracked."""
    counts = Counter(finding.verdict for finding in findings)
    lines = [f"{counts[verdict]:6d}  {verdict}" for verdict in (*GOOD, "missing", "untracked", "changed")]
    lines += [f"{f.verdict}: {f.file}: {f.detail}" for f in findings if f.verdict != "tracked"]
    return "\n".join([f"{len(findings):6d}  files of the graph's outputs", *lines])
