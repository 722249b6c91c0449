"""`kill -9` at any moment, then the same command again: the weights of a training that was left alone, to the bit."""

import random
import signal
import time

import pytest

from dpar.errors import InputError
from dpar.train.checkpoint import newest_checkpoint
from tests.train.processes import cpu_seconds, start
from tests.train.test_loop import same_weights
from tests.train.tiny import Recorder, history, train


def finished(folder, kind, **settings):
    """The model folder of a training in a process of its own, and the CPU seconds it took."""
    process = start(folder, kind, **settings)
    process.join(300)
    assert process.exitcode == 0
    return folder / f"model{settings['until']}", float(cpu_seconds(folder / "said").read_text())


@pytest.mark.parametrize("kind", ["dpar", "llamagen"])
def test_killed_at_random_moments_and_started_again(tmp_path, kind):
    settings = {"until": 40, "checkpoint_every": 1, "log_every": 2, "validate_every": 8}
    finished(tmp_path / "warm", kind, until=2)
    whole, seconds = finished(tmp_path / "whole", kind, **settings)
    rng, kills = random.Random(kind), 0
    # Moments in CPU time, which other work on the machine moves little: three of them are less than half a training.
    while kills < 40:
        process = start(tmp_path / "killed", kind, die_after=rng.uniform(0, 0.15 * seconds), **settings)
        process.join(300)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGPROF
        kills += 1
    assert kills > 2
    killed, _ = finished(tmp_path / "killed", kind, **settings)
    assert same_weights(whole, killed)
    assert history(whole) == history(killed)


def test_killed_at_each_renaming_and_removal_of_a_file(tmp_path):
    settings = {"until": 6, "checkpoint_every": 1, "log_every": 2, "validate_every": 3}
    whole, _ = finished(tmp_path / "whole", "llamagen", **settings)
    for attempt in range(60):
        process = start(tmp_path / "killed", "llamagen", die_at=1 + attempt % 13, **settings)
        process.join(300)
        if process.exitcode == 0:
            break
        assert process.exitcode == 137
    assert attempt > 8
    killed, _ = finished(tmp_path / "killed", "llamagen", **settings)
    assert same_weights(whole, killed)
    assert history(whole) == history(killed)


def test_a_state_that_another_process_trains_is_refused_until_that_ends(tmp_path):
    other = start(tmp_path, "llamagen", until=20_000, steps=20_000, checkpoint_every=1)
    while other.exitcode is None and not (tmp_path / "state" / "step00000001.json").exists():
        time.sleep(0.01)
    with pytest.raises(InputError, match="state is being trained by another process"):
        train(tmp_path, "llamagen", 8)
    other.kill()
    other.join()
    done = newest_checkpoint(tmp_path / "state")
    job = Recorder()
    train(tmp_path, "llamagen", done + 1, job=job)
    assert job.commits == [done, done + 1]
