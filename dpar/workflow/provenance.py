"""Refusal of changed settings where Snakemake has no records of the results: it would take all for current."""

from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpar.errors import InputError
from dpar.experiment.settings import TOKENIZER_PACE, TRAINING_PACE, Experiment
from dpar.files import read_json, unmarked
from dpar.tracking.places import CONFIG
from dpar.workflow.announcement import READS, Changes, changed_settings, read_by

# Those of a rule's settings that make nothing out of date.
FREE = {f"training.{name}" for name in TRAINING_PACE} | {f"tokenizer.training.{name}" for name in TOKENIZER_PACE}
FREE |= {f"sampling.{name}" for name in ("seeds", "batch_size", "compile")}
# Arguments of snakemake by which outputs are done again, or taken as they are, whatever is recorded of them.
MEANT = {"--forcerun", "-R", "--forceall", "-F", "--force", "-f", "--touch", "-t"}


def expect_records(results: Path, now: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Makes sure that Snakemake can tell what a change of settings makes out of date.

    Args:
        results: of the experiment, in `results/` of the folder that Snakemake works in.
        now: the experiment, as JSON.
        arguments: those of snakemake.

    Raises:
        InputError: settings that rules read differ from those of the run before, and nothing is recorded of it.
    """
    path = results / CONFIG
    made = path.is_file() and any(found.name not in (CONFIG, "tracking", "logs") for found in results.iterdir())
    if not made or MEANT & {word.partition("=")[0] for word in arguments} or has_records(results):
        return
    changes = _changes(unmarked(read_json(path)), now)
    # a model, a table or a gate that came or went makes nothing out of date
    changed = {
        key: (was, is_now)
        for key, (was, is_now) in changes.items()
        if not (_is_free(key) or isinstance(was, Mapping) or isinstance(is_now, Mapping))
    }
    rules = {rule: read_by([rule], changed) for rule in READS}
    if stale := [rule for rule, keys in rules.items() if keys]:
        first, both = next(iter(rules[stale[0]].items()))
        was, is_now = ("not set" if value is None else value for value in both)
        own = "import_tokenizer" if now["tokenizer"].get("weights") else "train_tokenizer"
        again = " ".join(own if rule == "train_tokenizer" else rule for rule in stale)  # the graph has one of the two
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise InputError(
            f"{first} was {was!s:.60} when {results} was made and is {is_now!s:.60}{more}; Snakemake has no records of "
            f"these results, and takes them as current: copy {results.parent.parent / '.snakemake'} with them, put "
            f"settings back, or say what to do again: `dpar run -- --forcerun {again}`"
        )


def _changes(before: dict[str, Any], now: Mapping[str, Any]) -> Changes:
    """Settings that differ from those of the run before, of which each that is new since then was at its default.

    Where settings of another version cannot be read, those that either has alone are left out: no defaults are known.
    """
    try:
        return changed_settings(Experiment.model_validate(before).model_dump(mode="json"), now)
    except ValidationError:
        return {key: both for key, both in changed_settings(before, now).items() if None not in both}


def has_records(results: Path) -> bool:
    """Whether Snakemake has recorded how a file of these results was made.

    Its records are called after the paths of the files, in Base64, which is four letters for three bytes.
    """
    kept = results.parent.parent / ".snakemake"
    begin = f"{results.parent.name}/{results.name}/".encode()
    letters = 4 * -(-len(begin) // 3)
    heads = (path.name.removeprefix("@")[:letters] for path in (kept / "metadata").glob("*"))
    return (kept / "metadata.db").exists() or any(_decoded(head).startswith(begin) for head in heads)


def _decoded(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text)
    except ValueError:  # no record
        return b""


def _is_free(key: str) -> bool:
    _, of_training, name = f".{key}".rpartition(".training.")
    return key in FREE or (bool(of_training) and name in TRAINING_PACE - {"steps", "epochs"})
