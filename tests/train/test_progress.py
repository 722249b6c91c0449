"""What a person sees of a training."""

import io
import sys

import pytest

from dpar.train.progress import Progress


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self):
        return True


def test_a_log_gets_lines_with_the_time_that_is_left(capsys, monkeypatch):
    clock = iter([100.0, 110.0, 4000.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Progress(50, 250) as progress:
        for _ in range(50):
            progress.advance()
        progress.show(100, {"train/loss": 5.12345, "perf/images_per_s": 321.0})
        progress.show(200, {"train/loss": 5.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 100/250  loss 5.123  images_per_s 321  30 s left",
        "step 200/250  loss 5  22 min left",
    ]


def test_hours_are_said_as_hours(capsys, monkeypatch):
    clock = iter([0.0, 7530.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    Progress(0, 20).show(10, {})
    assert "2 h 06 min left" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(3, 10) as progress:
        progress.advance()
        progress.show(4, {"train/loss": 5.12345})
        progress.say("a line that stays")
    shown = sys.stderr.getvalue()
    assert "4/10" in shown
    assert "loss 5.123" in shown
    assert "a line that stays\n" in shown


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_other_ranks_are_silent(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    with Progress(0, 10, silent=True) as progress:
        progress.advance()
        progress.show(1, {"train/loss": 1.0})
        progress.say("nobody hears this")
    assert not sys.stderr.getvalue()
