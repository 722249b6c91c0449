"""The documents: each command parses, the quick ones run, each file that is named exists."""

import argparse
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

from dpar import cli
from dpar.experiment.loading import load_experiment
from dpar.report.targets import targets
from dpar.workflow.recipes import RECIPES
from tests.data.samples import folder_of_images
from tests.stages.sampled import write_results
from tests.workflow.conftest import job_counts, snakemake

__all__ = ["snakemake"]

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), ROOT / "config" / "README.md", *(ROOT / "docs").rglob("*.md")])
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
# Programs of others: a document may call them, and what follows is theirs.
OTHERS = {"apt", "pip", "mlflow", "conda", "apptainer", "sha256sum", "md5sum"}
OURS = ("dpar ", "snakemake ", "make ")


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """The code blocks in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the text's bash blocks, without assignments before it."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


SHOWN = [(name, words) for name, text in TEXTS.items() for words in commands(text)]
# `dpar track sync` in a sentence may leave out what a sentence says.
MENTIONED = sorted(
    {(name, span) for name, text in TEXTS.items() for span in re.findall(r"`((?:dpar|snakemake|make) [^`\n]+)`", text)}
)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a subcommand of `dpar`."""
    assert command in cli.COMMANDS, f"there is no `dpar {command}`"
    return import_module(f"dpar.commands.{command.replace('-', '_')}").parser()


def parsers_of(words: list[str]) -> Iterator[argparse.ArgumentParser]:
    """The parsers of the words after `dpar`: of a command, and of what it has below it."""
    parser, below = parser_of(words[0]), [word for word in words[1:] if not word.startswith("-")][:1]
    yield parser
    if words[0] == "bench" and below:
        yield import_module(f"dpar.benchmarks.{below[0]}").parser()
    for action in parser._actions:
        if isinstance(action.choices, dict) and all(hasattr(inner, "parse_args") for inner in action.choices.values()):
            assert set(below) <= set(action.choices), f"there is no `dpar {words[0]} {below[0]}`"
            yield from (action.choices[name] for name in below)


def parse_dpar(words: list[str]) -> None:
    """Parses the words after `dpar`; `--help` among them would end it before the rest is looked at."""
    words = [word for word in words if word != "--help"]
    given = parser_of(words[0]).parse_args(words[1:])
    if words[0] == "bench":
        import_module(f"dpar.benchmarks.{given.benchmark}").parser().parse_args(given.options)
    if words[0] == "run" and given.snakemake:
        parse_snakemake(["--configfile", str(given.config), "--cores", "1", *given.snakemake])


def parse_snakemake(words: list[str]) -> None:
    """Parses the words after `snakemake`: one experiment, and targets that it has."""
    given = get_argument_parser().parse_args(words)
    files = [str(file) for file in given.configfile or []]
    assert len(files) <= 1, f"`--configfile` takes all that follows: {files}"
    if files and Path(ROOT / files[0]).exists():
        known = {*targets(load_experiment(ROOT / files[0])), "all", "report", "all_tables"}
        assert {target for target in given.targets if "/" not in target} <= known


def parse_make(words: list[str]) -> None:
    """Looks for the targets and the variables in the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert words
    for word in words:
        name, is_variable, _ = word.partition("=")
        pattern = rf"\b{name}\b" if is_variable else rf"^{re.escape(name)}:"
        assert re.search(pattern, text, re.MULTILINE), f"the Makefile has no {name}"


PARSERS = {"dpar": parse_dpar, "snakemake": parse_snakemake, "make": parse_make}


def test_the_commands_are_found():
    assert {"dpar", "snakemake", "make"} <= {words[0] for _, words in SHOWN}
    assert len(SHOWN) > 30
    assert len(MENTIONED) > 30


@pytest.mark.parametrize(("name", "words"), SHOWN, ids=[f"{name}: {' '.join(words)}" for name, words in SHOWN])
def test_a_command_can_be_given_as_it_is_written(name, words):
    program = words[0]
    if program in PARSERS:
        PARSERS[program](words[1:])
    elif program == "source":
        assert words[1:] == [".venv/bin/activate"]
    elif program == "export":
        assert all(re.fullmatch(r"[A-Z_]+=.*", word) for word in words[1:])
    elif program == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert program in OTHERS, f"{name}: {program} is not known"


@pytest.mark.parametrize("name", TEXTS)
def test_calls_of_programs_that_no_test_has_say_what_they_need(name):
    lines = [line for block in blocks(TEXTS[name], "bash") for line in block.replace("\\\n", " ").splitlines()]
    called = [line for line in lines if line.split()[:1] in (["conda"], ["apptainer"])]
    assert called or name != "docs/cluster.md"
    assert [line for line in called if not re.search(r"# not run here: needs \w", line)] == []


@pytest.mark.parametrize(("name", "span"), MENTIONED)
def test_a_command_in_a_sentence_exists_with_its_options(name, span):
    program, *words = shlex.split(span.replace("...", ""))
    if program != "dpar":
        PARSERS[program](words)
    elif words[0] != "COMMAND":
        own = words[: words.index("--")] if "--" in words else words
        known = {option for parser in parsers_of(own) for option in parser._option_string_actions}
        assert {word for word in own if word.startswith("--")} <= known


@pytest.mark.parametrize("name", TEXTS)
def test_commands_of_ours_stand_in_blocks_that_are_tested(name):
    for block in blocks(TEXTS[name]):
        if block not in blocks(TEXTS[name], "bash"):
            assert not any(line.startswith(OURS) for line in block.splitlines()), f"```bash for\n{block}"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The current folder: a checkout with the demo's results, of networks that were never trained."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    models = write_results(tmp_path / "results" / "demo", num_classes=4) / "models" / "dpar"
    (models / "step1").rename(models / "step400")
    monkeypatch.chdir(tmp_path)
    return tmp_path


READ_ME = [
    words[1:] for words in commands(TEXTS["README.md"]) if words[0] == "dpar" and words[1] not in ("run", "play")
]


def test_the_commands_of_the_readme_run(checkout, capsys):
    assert {words[0] for words in READ_ME} == {"sample", "export", "info", "plan", "init"}
    folder_of_images(checkout / "FOLDER", each=12)
    for words in READ_ME:
        words += ["--output", "own.yaml"] if words[0] == "init" else []  # config/ is the checkout's own
        assert cli.main(words) == 0, capsys.readouterr().err
    assert {"grid.png", "my-dpar"} <= {path.name for path in checkout.iterdir()}
    said = capsys.readouterr().out
    assert "table4" in said
    assert "DPAR-XL" in said


@pytest.mark.slow
def test_the_dry_runs_of_the_readme_run(snakemake):
    found = [words[1:] for words in commands(TEXTS["README.md"]) if words[0] == "snakemake"]
    assert found
    for words in found:
        run = snakemake(*words, cwd=ROOT)
        assert run.returncode == 0, run.stdout + run.stderr
        assert job_counts(run.stdout + run.stderr)["train_model"] > 0


@pytest.mark.parametrize("name", TEXTS)
def test_a_document_names_only_files_that_exist(name):
    text = "".join(part for i, part in enumerate(re.split(r"^```.*$", TEXTS[name], flags=re.MULTILINE)) if i % 2 == 0)
    here = (ROOT / name).parent
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s:]+)\)", text)} - {""}
    missing = {link for link in linked if not (here / link).exists()}
    named = set(re.findall(r"`((?:dpar|workflow|config|tests|slurm|envs|docs)/[\w./-]+\.\w+)`", text)) - {
        "config/NAME.yaml"
    }
    missing |= {path for path in named if not (ROOT / path).exists()}
    assert not missing, f"{name} names files that are not there"


@pytest.mark.parametrize("name", TEXTS)
def test_a_link_into_a_page_leads_to_a_heading(name):
    for link, anchor in re.findall(r"\]\(([^)\s:#]*)#([^)\s]+)\)", TEXTS[name]):
        page = ((ROOT / name).parent / link if link else ROOT / name).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"README.md"}))
def test_a_page_begins_with_what_it_answers(name):
    assert re.match(r"# .+\n\n[A-Z][^|`#!]", TEXTS[name]), "a heading, then a sentence"


def test_the_index_lists_every_page():
    linked = set(re.findall(r"\]\(([^)\s:#]+)\)", TEXTS["docs/README.md"]))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert pages <= linked


def test_the_readme_is_short_and_its_numbers_are_the_demos():
    assert len(TEXTS["README.md"].split()) <= 900
    rows = re.findall(r"^\| (LlamaGen|DPAR) \| (.+) \|$", TEXTS["README.md"], re.MULTILINE)
    assert len(rows) == 2
    for model, row in rows:
        printed = re.search(rf"^\| {model.lower()} .*$", TEXTS["docs/results/demo.md"], re.MULTILINE)
        assert printed
        assert set(row.split(" | ")) - {"1"} <= set(re.findall(r"[\d.]+", printed[0]))


def test_the_glossary_says_names_that_the_code_has():
    rows = re.findall(r"^\| [^|]*\| (`[^|]+`) \|", TEXTS["CONTRIBUTING.md"].partition("## Glossary")[2], re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert len(names) > 15
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("dpar/**/*.py"))
    assert not {name for name in names if not re.search(rf"(?:\b|_){name}\b", code)}


def test_the_example_of_a_site_says_what_the_profile_reads():
    page = TEXTS["docs/cluster.md"]
    said = re.findall(r"^export (\w+)=", (ROOT / "profiles/site/site.sh").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(said) > 5
    assert all(f"`{name}`" in page for name in said)
    profile = (ROOT / "slurm" / "config.yaml").read_text(encoding="utf-8")
    assert all(name in profile for name in {*said} - {"DPAR_CACHE"})
    asked = yaml.safe_load((ROOT / "profiles/site/resources.yaml").read_text(encoding="utf-8"))
    assert asked.keys() <= RECIPES.keys()
    assert all(isinstance(resources, dict) for resources in asked.values())


def test_the_container_is_made_of_files_that_exist():
    recipe = (ROOT / "envs" / "dpar.def").read_text(encoding="utf-8")
    files = re.findall(
        r"^    (\S+) /opt/dpar/(\S+)$", recipe.partition("%files")[2].partition("%post")[0], re.MULTILINE
    )
    assert {source for source, _ in files} >= {"pyproject.toml", "constraints.txt", "dpar"}
    assert all(source == target and (ROOT / source).exists() for source, target in files)
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert read["readme"] in {source for source, _ in files}
