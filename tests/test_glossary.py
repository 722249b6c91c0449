"""One concept, one name: names and phrases that were replaced do not come back (CONTRIBUTING.md, Glossary)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("dpar", "workflow", "tests", "docs", "config")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".smk", ".md", ".rst", ".yaml"} and path != Path(__file__)
)
MODULES = sorted((ROOT / "dpar").rglob("*.py"))

# Words that nothing but a name can be: not to be found anywhere
NAMES = {
    "said_entropy": "entropy_from_outputs",
    "stated_commit": "commit_label",
    "filled_up": "pad_batch",
    "_Lasting": "_PipeTolerantFile",
    "outlive_readers": "ignore_broken_pipe",
    "only_process": "process_lock",
    "only_run": "run_lock",
    "only_training": "training_lock",
    "only_writer": "writer_lock",
    "only_jobs": "claim_jobs",
    "behind_first": "shift_right",
    "divided_as": "shard_like",
    "_tossed": "_mean_patches_iid",
    "_place_of": "_float_to_ordinal",
    "_float_at": "_ordinal_to_float",
    "_around": "_bracket",
    "is_course": "is_training_curve",
    "beside_own": "compare_with_original",
    "_mixed": "attend",
}

# English words, which sentences may use: not the names of functions or classes
DEFINED = {
    "sent": "to_device",
    "replacing": "atomic_write",
    "Together": "LockstepSlot",
    "Apart": "RaggedSlots",
    "encoded": "encoder_step",
    "closed": "pool_patches",
    "opened": "patch_transformer_step",
    "decoded": "decoder_step",
    "drawn": "gumbel_argmax",
    "informed": "add_patch_state",
    "divide": "shard",
    "whole": "full_tensor",
    "collected": "gather_state",
    "nats": "summed_loss",
    "beside": "find_network, compare_with_paper",
    "placing": "boundary_network",
    "How": "Settings",
    "Lane": "Variant",
    "begun": "warm_up",
}

PHRASES = {
    r"def keep\(self, rows": "truncate_batch",
    r"thinks? in patches and speaks? in tokens": "encoder, patch transformer, decoder",
    r"patches alike, in vain places": "same lengths, uninformative positions",
    r"by the toss of a coin": "independent with equal probability",
    r"None if `root` is none": "None outside a git checkout",
    r"\bbeside\b": "next to, compared with, in addition to",
    r"\b(?:rows|images|tokens|patches|MACs|accumulates) an? (?:image|split|patch|side)\b(?! may| has)": "per",
}


REPLACED = (
    {rf"(?<![\w]){re.escape(name)}(?!\w)": plain for name, plain in NAMES.items()}
    | {rf"\b(?:def|class)\s+{name}\b": plain for name, plain in DEFINED.items()}
    | {phrase.replace(" ", r"\s+"): plain for phrase, plain in PHRASES.items()}
)


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    found = {path: path.read_text("utf-8") for path in FILES}
    assert len(found) > 300
    return found


@pytest.mark.parametrize(("pattern", "plain"), REPLACED.items(), ids=[*NAMES, *DEFINED, *PHRASES])
def test_a_replaced_name_is_gone(texts, pattern, plain):
    search = re.compile(pattern).search
    found = [str(path.relative_to(ROOT)) for path, text in texts.items() if search(text)]
    assert found == [], f"say {plain}"


@pytest.mark.parametrize(
    "text",
    [
        "with only_run(results):",
        "_tossed(3)",
        "def sent(tensor):",
        "class  How(Settings):",
        "thinks in\n    patches and speaks in tokens",
        "ours beside the paper's",
        "multiply-accumulates an\n    image",
    ],
)
def test_the_patterns_find_what_they_are_for(text):
    assert any(re.search(pattern, text) for pattern in REPLACED)


@pytest.mark.parametrize(
    "text", ["the images that were sent", "run_only_runs", "def whole_files():", "a class that is whole"]
)
def test_the_patterns_leave_english_alone(text):
    assert not any(re.search(pattern, text) for pattern in REPLACED)


def _docstrings(path: Path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_noun_phrases(path):
    """A docstring says what comes out; a clause that begins with "What" or "How" makes the reader wait for it."""
    found = [
        f"line {line}: {text.splitlines()[0]}" for line, text in _docstrings(path) if text.startswith(("What ", "How "))
    ]
    assert found == []
