"""Nothing is so long that it holds several jobs: functions, the mains of stages and commands, files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "dpar").rglob("*.py"))
MOST_OF_A_FUNCTION, MOST_OF_A_MAIN, MOST_OF_A_FILE = 60, 40, 450  # lines
EXCEPTION = "dpar/experiment/settings.py"  # all that an experiment may say, which one reads in one place


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_do_one_thing(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    lengths = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in nodes]
    most = {"main": MOST_OF_A_MAIN}
    assert [(name, lines) for name, lines in lengths if lines > most.get(name, MOST_OF_A_FUNCTION)] == []


def test_files_hold_one_thing():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert len(lengths) > 200
    assert [name for name, lines in lengths.items() if lines > MOST_OF_A_FILE] == [EXCEPTION]
