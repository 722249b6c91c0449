"""The program `dpar`: its subcommands exist, and errors are one line."""

import argparse
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest

from dpar import __version__
from dpar.cli import COMMANDS, main
from dpar.commands.bench import BENCHMARKS
from dpar.errors import InputError, run_command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_is_there_and_explains_itself(name, capsys):
    assert callable(import_module(f"dpar.commands.{name.replace('-', '_')}").main)
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def parsers(parser):
    """A parser, and those of what it has below it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(each for action in below for sub in action.choices.values() for each in parsers(sub))]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_every_default(name):
    for parser in parsers(import_module(f"dpar.commands.{name.replace('-', '_')}").parser()):
        shown = " ".join(parser.format_help().split())
        for action in parser._actions:
            silent = action.default in (None, [], argparse.SUPPRESS) or action.default is False  # 0 is said
            if action.option_strings and not silent:
                said = f"(default: {action.default})" in shown.replace("- ", "-")
                assert said or "default" in (action.help or ""), f"{parser.prog} {action.option_strings[0]}"


@pytest.mark.parametrize(
    "given",
    [
        "plan --gpus 0", "plan --mfu 0", "plan --mfu nan", "plan --sampling-mfu 5", "plan --float32-mfu -1",
        "plan --images -5", "plan --price nan", "plan --price -1", "run --cores 0", "run --budget nan",
        "run --budget -1",
        "track sync --watch nan", "track ui --refresh 0", "track ui --port 99999",
        "evaluate A B --split-size 0", "evaluate A B --resolution 100000", "metrics --split-size -1",
        "make-reference A B --resolution 0", "make-reference A B --seed -1", "make-reference A B --images 0",
        "bench sample --batches 0", "bench train --batch-size -1", "bench train --turns 0", "bench data --seconds inf",
        "bench train --resolution 0", "bench roofline --resolution 0", "bench roofline --batches 0",
        "play A --port 99999",
        "convert A --resolution 0", "info DPAR-B --resolution 99999", "patchify A --grid-width 0", "sample --n 0",
        "sample --seed -1", "sample --keep-rows 0", "sample --max-length 0", "sample --temperature 0",
        "sample --top-p 1.5", "sample --top-k -3",
    ],
)  # fmt: skip
def test_a_number_that_means_nothing_is_refused_before_anything_is_done(given, capsys):
    *_, flag, value = given.split()
    with pytest.raises(SystemExit) as stop:
        main(given.split())
    assert stop.value.code == 2
    assert f"argument {flag}: found {value}, expected a " in capsys.readouterr().err


def test_every_whole_number_of_a_flag_has_its_range():
    modules = [f"dpar.commands.{name.replace('-', '_')}" for name in COMMANDS]
    modules += [f"dpar.benchmarks.{name}" for name in BENCHMARKS if name != "gpu_check"]  # which needs Python alone
    actions = [
        action for module in modules for each in parsers(import_module(module).parser()) for action in each._actions
    ]
    assert len(actions) > 100
    assert [action.option_strings for action in actions if action.type is int and not action.choices] == []


@pytest.mark.parametrize("name", ["run", "check", "plan", "table comparison", "status"])
def test_two_experiments_are_refused_where_one_would_be_passed_over(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--config", "config/demo.yaml", "--config", "config/fashion28.yaml"])
    assert stop.value.code == 2
    assert "argument --config: given twice, config/demo.yaml and config/fashion28.yaml; give" in capsys.readouterr().err


def test_one_flag_has_one_meaning_in_all_commands():
    meanings = {}
    for name in COMMANDS:
        for parser in parsers(import_module(f"dpar.commands.{name.replace('-', '_')}").parser()):
            for action in parser._actions:
                if shared := {"--config", "--set", "--target", "--cores", "--directory"} & {*action.option_strings}:
                    said = "" if "default" in action.help else str(action.default)
                    meaning = re.sub(r" \(default: .*\)$", "", action.help)  # status has another one of --config
                    meanings.setdefault(shared.pop(), set()).add((said, meaning))
    assert meanings.keys() == {"--config", "--set", "--target", "--cores", "--directory"}
    assert all(len(said) == 1 for said in meanings.values()), meanings


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_a_mistyped_command_is_told_the_one_that_was_meant(capsys):
    assert main(["sampel"]) == 2
    assert "error: there is no command 'sampel'; did you mean sample?" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_an_unknown_command_is_an_error(capsys):
    assert main(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_errors_for_people_are_one_line_without_a_traceback(capsys):
    def refuses(argv):
        raise InputError("found x, expected y")

    assert run_command(refuses, []) == 2
    assert capsys.readouterr().err == "error: found x, expected y\n"


def test_a_full_disk_is_said_in_one_line(capsys):
    def full(argv):
        raise OSError(28, "No space left on device", "a.npz")

    assert run_command(full, []) == 3
    assert "No space left on device (a.npz)" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    def broken(argv):
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_command(broken, [])


def test_work_goes_on_when_the_reader_of_its_output_has_gone(tmp_path):
    program = (
        "import sys; from pathlib import Path; from dpar.errors import run_command\n"
        "def main(argv):\n"
        "    for _ in range(10_000):\n"
        "        print('said'); print('said', file=sys.stderr)\n"
        "    Path(sys.argv[1]).write_text('done')\n"
        "sys.exit(run_command(main))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "product")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert (tmp_path / "product").read_text() == "done"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_progress_is_in_a_log_as_soon_as_it_is_said(tmp_path, unbuffered):
    program = (
        "import os, sys; from dpar.errors import run_command\n"
        "def main(argv):\n"
        "    print('said', file=sys.stderr)\n"
        "    os._exit(0)  # what still lies in a buffer is lost\n"
        "run_command(main)"
    )
    with (tmp_path / "log").open("w") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        subprocess.run([sys.executable, "-c", program], stderr=log, env=environment, check=True)
    assert (tmp_path / "log").read_text() == "said\n"


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_a_letter_that_the_terminal_lacks_is_no_traceback(tmp_path, environment):
    (tmp_path / "title.yaml").write_bytes("title: Größe 日本".encode())
    program = (
        "import sys; from dpar.experiment.reading import read_yaml; from dpar.errors import InputError, run_command\n"
        "def main(argv):\n"
        "    print(read_yaml(sys.argv[1])['title'])\n"
        "    raise InputError('gr\\xf6\\xdfer')\n"
        "sys.exit(run_command(main))"
    )
    command = [sys.executable, "-X", "utf8=0", "-c", program, str(tmp_path / "title.yaml")]
    run = subprocess.run(
        command, capture_output=True, env={**os.environ, "PYTHONUTF8": "0", **environment}, check=False
    )
    assert run.returncode == 2, run.stderr
    assert run.stdout == b"Gr\\xf6\\xdfe \\u65e5\\u672c\n"
    assert run.stderr == b"error: gr\\xf6\\xdfer\n"
