"""Signals to who waits for a command reach all that it started, and nobody is left behind."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

COMMAND = """
import signal, subprocess, sys
job = subprocess.Popen(["bash", "-c", "trap : INT TERM HUP; " + sys.executable + " -c '" + sys.argv[1] + "'; exit $?"])
apart = subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL)
print(job.pid, apart.pid, flush=True)
try:
    job.wait()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    job.wait()
finally:
    subprocess.run([sys.executable, "-c", "print(1 + 1)"])
apart.kill()
"""
SAVING = """
import pathlib, signal, sys, time
asked = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: asked.append(1))
print("training", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.5)
print("saved", flush=True)
sys.exit(75)
"""
STUBBORN = SAVING.replace("time.sleep(0.5)", "time.sleep(60)")
ABOVE = """
import os, sys
from dpar.workflow.supervision import Supervised
print(os.getpid(), flush=True)
running = Supervised([sys.executable, "-c", *sys.argv[1:]])
status = running.wait()
print("status", status, running.stopped_by.name if running.stopped_by else None, flush=True)
"""


class Tree:
    """A supervisor, its command, the command's job and somebody in a session apart."""

    def __init__(self, job, **how):
        command = [sys.executable, "-c", ABOVE, COMMAND, job]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **how)
        supervisor = self.line()
        said = sorted([self.line(), self.line()])  # by two processes, in either order
        assert said[1] == "training"
        self.all = [int(pid) for pid in (supervisor, *said[0].split())]

    def line(self):
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def rest(self):
        return self.process.communicate(timeout=60)[0].split()

    def left(self):
        return [pid for pid in self.all if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


@pytest.fixture
def tree():
    made = []

    def start(job, **how):
        made.append(Tree(job, **how))
        return made[-1]

    yield start
    for each in made:
        for pid in each.left():
            os.kill(pid, signal.SIGKILL)
        each.process.wait()


@pytest.mark.parametrize("numbers", [["SIGTERM"], ["SIGHUP"], ["SIGINT"], ["SIGTERM", "SIGHUP", "SIGTERM"]])
def test_a_signal_to_the_supervisor_lets_jobs_save_and_the_command_finish(tree, numbers):
    running = tree(SAVING)
    for number in numbers:
        running.process.send_signal(signal.Signals[number])
        if len(numbers) > 1:
            time.sleep(0.05)  # else two of a number may be one
    assert running.rest() == ["interrupted", "saved", "2", "status", "0", numbers[0]]
    assert not running.left()


def test_a_second_request_kills_all(tree):
    running = tree(STUBBORN)
    running.process.terminate()
    assert running.line() == "interrupted"
    while running.process.poll() is None:
        time.sleep(0.3)
        running.process.terminate()
    assert running.rest()[-3:] == ["status", "-9", "SIGTERM"]
    assert not running.left()


def test_a_signal_that_is_ignored_stays_so(tree):
    running = tree(SAVING, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    running.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert len(running.left()) == 3
    running.process.terminate()
    assert running.rest()[-3:] == ["status", "0", "SIGTERM"]


def test_jobs_that_outlive_their_command_are_waited_for(tree):
    running = tree(SAVING.replace("time.sleep(0.5)", "time.sleep(2)"))
    running.process.terminate()
    assert running.line() == "interrupted"
    command = psutil.Process(running.process.pid).children()[0]
    command.kill()
    assert running.rest() == ["saved", "status", "-9", "SIGTERM"]
