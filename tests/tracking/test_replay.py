import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.tracking.replay import Point, Run, replay

KINDS = ("start", "metrics", "commit", "summary", "system", "image", "FINISHED", "KILLED")
ABOUT = {"rule": "train_model", "name": "train_model[x]"}


class Tape:
    """Events as a spool would hold them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def add(self, event: str, **fields: Any) -> "Tape":
        self.events.append({"t": 1000 + len(self.events), "event": event, **fields})
        return self

    def start(self) -> "Tape":
        return self.add("start", **ABOUT)

    def steps(self, *steps: int, sign: int = 1) -> "Tape":
        for step in steps:
            self.add("metrics", step=step, values={"loss": sign * step})
        return self

    def commit(self, step: int) -> "Tape":
        return self.add("commit", step=step)

    def end(self, status: str) -> "Tape":
        return self.add("end", status=status, reason=None)

    def runs(self) -> list[Run]:
        return replay(self.events)


def steps_of(run: Run, key: str = "loss") -> list[int]:
    return [point.step for point in run.points if point.key == key]


def test_only_committed_steps_of_a_killed_attempt_show_until_it_resumes():
    tape = Tape().start().steps(*range(1, 8)).commit(4)
    assert steps_of(tape.runs()[0]) == [1, 2, 3, 4]
    tape.end("KILLED").start()
    assert steps_of(tape.runs()[0]) == [1, 2, 3, 4]
    tape.steps(5, 6, 7, 8).end("FINISHED")
    (run,) = tape.runs()
    assert steps_of(run) == list(range(1, 9))
    assert (run.status, run.attempts) == ("FINISHED", 2)


def test_a_kill_between_checkpoint_and_commit_loses_no_step():
    tape = Tape().start().steps(*range(1, 7)).commit(4)  # the checkpoint of step 6 was written, its commit was not
    tape.start().commit(6).steps(7, 8).commit(8)
    assert steps_of(tape.runs()[0]) == list(range(1, 9))
    without_first_commit = Tape().start().steps(*range(1, 7)).commit(4).start().steps(7, 8).commit(8)
    assert steps_of(without_first_commit.runs()[0]) == list(range(1, 9))


def test_a_job_that_resumes_at_its_end_shows_everything():
    tape = Tape().start().steps(1, 2).commit(2).add("metrics", step=2, values={"nll": 5}).start().end("FINISHED")
    (run,) = tape.runs()
    assert steps_of(run) == [1, 2]
    assert steps_of(run, "nll") == [2]


def test_a_value_of_the_last_step_that_is_measured_again_shows_once():
    tape = Tape().start().steps(1, 2).commit(2).end("KILLED").start().commit(2).steps(2).end("FINISHED")
    assert steps_of(tape.runs()[0]) == [1, 2]


def test_going_on_before_the_visible_steps_is_a_new_run_that_shares_the_past():
    tape = Tape().start().steps(1, 2, 3, 4).commit(4).end("KILLED").start().commit(2).steps(3, 4, sign=-1)
    old, new = tape.end("FINISHED").runs()
    assert steps_of(old) == steps_of(new) == [1, 2, 3, 4]
    assert [point.value for point in old.points] == [1, 2, 3, 4]
    assert [point.value for point in new.points if point.key == "loss"] == [1, 2, -3, -4]
    assert (old.status, old.superseded, old.attempts) == ("KILLED", True, 1)
    assert (new.status, new.superseded, new.attempts, new.generation) == ("FINISHED", False, 1, 1)


def test_a_finished_job_that_is_run_again_says_only_what_has_changed():
    tape = Tape()
    for accuracy in (0.5, 0.5, 0.75):
        tape.start().add("summary", values={"accuracy": accuracy, "images": 10}).end("FINISHED")
    (run,) = tape.runs()
    assert [(p.value, p.step) for p in run.points if p.key == "accuracy"] == [(0.5, 0), (0.75, 0)]
    assert [p.value for p in run.points if p.key == "images"] == [10]
    assert run.attempts == 3


def test_numbers_that_are_not_finite_and_the_load_of_the_machine_come_through():
    tape = Tape().start().add("metrics", step=1, values={"loss": "nan"}).add("system", values={"system/cpu": 5.0})
    tape.add("system", values={"system/cpu": "inf"}).commit(1)
    points = tape.runs()[0].points
    assert math.isnan(next(point.value for point in points if point.key == "loss"))
    assert [(p.value, p.step) for p in points if p.key == "system/cpu"] == [(5.0, 1), (math.inf, 2)]


def test_wall_time_is_that_of_all_attempts():
    tape = Tape().start().steps(1).commit(1)
    tape.events[-1]["t"] = 6000  # killed without a word, 5 s after its start
    tape.start().end("FINISHED")
    tape.events[-2]["t"], tape.events[-1]["t"] = 10_000, 12_000
    walls = [point.value for point in tape.runs()[0].points if point.key == "time/wall_s"]
    assert walls == [7.0]


def test_events_before_the_first_start_are_ignored():
    assert Tape().steps(1).runs() == []


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    total=st.integers(1, 60),
    every=st.integers(1, 7),
    log_every=st.integers(1, 5),
    kills=st.lists(st.integers(0, 60), max_size=5),
    commits_on_resume=st.booleans(),
    forgets=st.booleans(),
)
def test_killed_and_resumed_shows_what_an_uninterrupted_training_shows(
    total: int, every: int, log_every: int, kills: list[int], commits_on_resume: bool, forgets: bool
):
    tape, checkpoint = Tape(), 0
    for kill in [*kills, total + 1]:
        tape.start()
        if commits_on_resume:
            tape.commit(checkpoint)
        for step in range(checkpoint + 1, min(total, checkpoint + kill) + 1):
            if step % log_every == 0 or step == total:
                tape.steps(step)
            if step % every == 0 or step == total:
                checkpoint = step
                if not forgets:
                    tape.commit(step)
    tape.end("FINISHED")
    (run,) = tape.runs()
    expected = [step for step in range(1, total + 1) if step % log_every == 0 or step == total]
    assert [(p.step, p.value) for p in run.points if p.key == "loss"] == [(step, step) for step in expected]
    assert run.attempts == len(kills) + 1


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.lists(st.sampled_from(["start", "metrics", "commit", "summary", "system", "image", "FINISHED", "KILLED"])),
    st.data(),
)
def test_what_is_visible_never_goes_away(kinds: list[str], data: st.DataObject):
    tape = Tape().start()
    shown: list[list[Point]] = [[]]
    for kind in kinds:
        step = data.draw(st.integers(0, 8))
        if kind == "start":
            tape.start()
        elif kind == "metrics":
            tape.steps(step)
        elif kind == "commit":
            tape.commit(step)
        elif kind == "image":
            tape.add("image", key="samples", step=step, file="x.png")
        elif kind in ("summary", "system"):
            tape.add(kind, values={f"{kind}/x": step})
        else:
            tape.end(kind)
        now = [run.points for run in tape.runs()]
        for before, after in zip(shown, now, strict=False):
            assert after[: len(before)] == before
        assert len(now) >= len(shown)
        shown = now
    for points in shown:
        keys = [(point.key, point.step, point.timestamp) for point in points]
        assert len(keys) == len(set(keys))
