"""The files by which others' tools know this repository say the same as the Makefile."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_both_continuous_integrations_run_the_same_commands():
    ours = re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["ci"]["steps"]
    theirs = [step["run"].removeprefix("sudo ") for step in steps if "run" in step]
    assert ours == theirs == ["make check", "make test", "make slurm-test"]


def test_commits_are_held_to_the_formatting_and_lint_of_make_check():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"] for hook in local["hooks"]]
    assert hooks == [command for command in commands if re.match(r"\.venv/bin/(ruff|snakefmt) ", command)]
    assert len(hooks) == 3
