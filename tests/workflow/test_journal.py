"""The journal of a run: what is written as Snakemake says it, and what is read from it."""

import json
import logging
import os

import pytest

from dpar.workflow import journal


def told(results, *events):
    """A journal of these events, each with a number of seconds."""
    for i, (event, values) in enumerate(events):
        journal.write(results, event, anew=i == 0, **values)
    path = journal.journal_path(results)
    lines = [{**json.loads(line), "time": 100.0 * i} for i, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return journal.read(results)


PLANNED = ("planned", {"pid": os.getpid(), "jobs": {"train_model": 2, "make_table": 1}})
STARTED = ("started", {"job": 3, "name": "train_model dpar/step4", "log": ["logs/a.log"]})


def test_a_run_that_goes_on_shows_the_last_word_of_each_job(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_bytes(b"begun\nstep 1/9\rstep 2/9  loss 3.1  40 s left\n\n")
    state = told(tmp_path, PLANNED, STARTED, ("started", {"job": 4, "name": "x", "log": []}), ("finished", {"job": 4}))
    assert list(journal.lines(state, tmp_path, now=400)) == [
        "running: 1 of 3 jobs, in 7 min, about 2 min left",
        "  train_model dpar/step4 (5 min): step 2/9  loss 3.1  40 s left",
    ]


def test_what_ends_is_a_line_each_with_the_time_that_is_left(tmp_path):
    (tmp_path / "a.log").write_text("begun\nstep 9/9  nll 2.4\n")
    costs = {"train_model a": 100.0, "train_model b": 300.0}
    planned = ("planned", {"pid": os.getpid(), "jobs": {"train_model": 2, "make_table": 1}, "seconds": costs})
    begun = [("started", {"job": i, "name": f"train_model {name}", "log": ["a.log"]}) for i, name in enumerate("ab")]
    before = told(tmp_path, planned, begun[0])
    assert before.left(now=100) is None, "no pace yet"
    state = told(tmp_path, planned, begun[0], ("finished", {"job": 0}), begun[1])
    # a took 100 s: 5 to start and 100 of work were thought of; b has run for 50 s, and a table needs a start
    assert state.left(now=350) == pytest.approx(5 + 300 * 100 / 105 - 50 + 5)
    assert list(journal.plain_lines(before, state, tmp_path, 350)) == [
        "1 of 3  train_model a: step 9/9  nll 2.4 (2 min); about 4 min left"
    ]
    assert list(journal.plain_lines(state, state, tmp_path, 350)) == []
    failed = told(tmp_path, planned, begun[0], ("failed", {"job": 0, "name": "x", "log": ["a.log"]}))
    assert list(journal.plain_lines(before, failed, tmp_path, 350)) == ["failed  train_model a, log a.log"]
    assert next(journal.lines(state, tmp_path, now=350)) == "running: 1 of 3 jobs, in 6 min, about 4 min left"


def test_jobs_side_by_side_leave_less_time(tmp_path):
    planned = ("planned", {"pid": os.getpid(), "jobs": {"a": 4}})
    begun = [("started", {"job": i, "name": f"a {i}", "log": []}) for i in range(2)]
    state = told(tmp_path, planned, *begun, ("finished", {"job": 0}), ("finished", {"job": 1}))
    # 200 and 200 s of work in 400 s of time, and twice as much is left
    assert state.left(now=400) == pytest.approx(400)
    assert state.left(now=250) < 400


def test_a_table_at_the_end_of_a_log_is_no_last_word(tmp_path):
    (tmp_path / "a.log").write_text("2 rows\n| model | FD |\n| dpar | 1.2 |\n- Values are means.\n")
    assert journal.last_line(tmp_path, ["a.log"]) == "2 rows"
    (tmp_path / "a.log").write_text("| dpar | 1.2 |\n")
    assert journal.last_line(tmp_path, ["a.log"]) == ""


def test_short_jobs_say_nothing_of_the_pace_of_long_ones(tmp_path):
    """Those before the first training are over in seconds; hours of trainings are left all the same."""
    costs = {"index a": 0.0, "index b": 0.0, "train a": 3600.0, **{f"draw {i}": 3.0 for i in range(40)}}
    planned = ("planned", {"pid": os.getpid(), "jobs": {"index": 2, "train": 1, "draw": 40}, "seconds": costs})
    state = told(tmp_path, planned, ("started", {"job": 0, "name": "index a", "log": []}), ("finished", {"job": 0}))
    assert state.left(now=200) == pytest.approx((100 * 42 + 3600 + 120) / 1)


def test_a_long_job_that_nobody_counted_is_no_start(tmp_path):
    planned = ("planned", {"pid": os.getpid(), "jobs": {"index": 2, "fit": 1, "draw": 10}, "seconds": {}})
    jobs = [("started", {"job": i, "name": f"index {i}", "log": []}) for i in range(2)]
    fit = [("started", {"job": 2, "name": "fit", "log": []}), *[("x", {})] * 20, ("finished", {"job": 2})]
    state = told(tmp_path, planned, jobs[0], ("finished", {"job": 0}), jobs[1], ("finished", {"job": 1}), *fit)
    assert [job.seconds for job in state.finished] == [100, 100, 2100]
    assert state.left(now=2700) == pytest.approx(100 * 10, rel=0.2)


def test_a_function_is_called_at_the_first_event_of_a_kind():
    seen = []
    handler = journal.FirstEvent("run_info", lambda: seen.append(1))
    for event in ("LogEvent.JOB_INFO", None, "LogEvent.RUN_INFO", "run_info"):
        record = logging.makeLogRecord({"event": event})
        handler.handle(record)
    assert seen == [1]


def test_what_failed_is_told_with_the_end_of_its_log(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text("\n".join(f"line {i}" for i in range(20)) + "\nerror: too \x1b[2J few\n")
    failed = ("failed", {"job": 3, "name": "train_model", "log": ["logs/a.log"]})
    state = told(tmp_path, PLANNED, STARTED, failed, STARTED, failed, ("ended", {"how": "failed"}))
    assert list(journal.lines(state, tmp_path)) == [
        "failed: 0 of 3 jobs, in 8 min",
        *["  failed: train_model dpar/step4, log logs/a.log"] * 2,
    ]
    found = list(journal.failures(state, tmp_path))
    assert found[0] == "train_model dpar/step4 failed; the end of logs/a.log:"
    assert len(found) == 1 + journal.LAST_LINES, "once, though it was tried twice"
    assert found[-1] == r"  error: too \x1b[2J few"


def test_a_run_whose_process_is_gone_was_interrupted(tmp_path):
    state = told(tmp_path, ("planned", {"pid": 2**22 + 1, "jobs": {"a": 1}}), STARTED)
    assert list(journal.lines(state, tmp_path)) == ["interrupted: 0 of 1 jobs, in 100 s"] or not state.alive


def test_a_refusal_takes_the_place_of_the_run_before_and_half_a_line_is_left_out(tmp_path):
    told(tmp_path, PLANNED)
    journal.write(tmp_path, "refused", anew=True, text="nothing fits")
    with open(journal.journal_path(tmp_path), "a") as file:
        file.write('{"event": "star')
    state = journal.read(tmp_path)
    assert list(journal.lines(state, tmp_path)) == ["nothing was started: nothing fits"]
    assert journal.read(tmp_path / "none") is None


def test_snakemakes_events_are_written_by_their_kind(tmp_path):
    journal.begin(tmp_path, {"a": 1})
    handler = journal.JournalHandler(tmp_path)
    about = {"jobid": 7, "rule_name": "train_model", "wildcards": {"model": "dpar"}, "log": ["x.log"], "output": ["x"]}
    gathers = {"jobid": 0, "rule_name": "all", "wildcards": {}, "log": [], "output": []}
    told = [("job_info", about), ("progress", {}), ("job_finished", {"job_id": 7})]
    for event, values in [*told, ("job_info", gathers), ("job_finished", {"job_id": 0})]:
        record = logging.makeLogRecord({"msg": "said", "event": event, **values})
        handler.emit(record)
    handler.emit(logging.makeLogRecord({"msg": "without an event"}))
    kinds = [json.loads(line)["event"] for line in journal.journal_path(tmp_path).read_text().splitlines()]
    assert kinds == ["planned", "started", "finished"]
    assert journal.read(tmp_path).done == 1
