import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dpar import tracking
from dpar.errors import InputError
from dpar.launched import LAUNCHER
from dpar.tracking.ledger import faults, read_events, spools
from dpar.tracking.replay import replay
from dpar.tracking.spool import EVENTS, MANIFEST


def events_of(results: Path) -> list[dict]:
    (spool,) = spools(results)
    return list(read_events(spool))


def kinds_of(results: Path) -> list[str]:
    return [event["event"] for event in events_of(results)]


def test_a_job_leaves_events_and_a_manifest_of_every_output(results: Path, job):
    (results / "in.bin").write_bytes(b"input")
    with job(
        "encode_images", name="encode_images[train]", inputs=("in.bin",), outputs=("codes", "log.json")
    ) as running:
        (results / "codes").mkdir()
        (results / "codes" / "0.parquet").write_bytes(b"codes")
        (results / "codes" / ".snakemake_timestamp").touch()
        (results / "log.json").write_text("{}")
        running.summary({"rows": 3})
        running.note("one shard")
        running.tags({"split": "train"})
    assert kinds_of(results) == ["start", "summary", "note", "tags", "summary", "end"]
    (spool,) = spools(results)
    manifest = json.loads((spool / MANIFEST).read_text())
    assert [(a["path"], a["kind"], a["bytes"]) for a in manifest["outputs"]] == [
        ("codes", "folder", 5),
        ("log.json", "file", 2),
    ]
    assert [file["path"] for file in manifest["outputs"][0]["files"]] == ["0.parquet"]
    assert [a["path"] for a in manifest["inputs"]] == ["in.bin"]
    assert len(manifest["commit"] or "0" * 40) == 40
    assert {"python", "numpy"} <= manifest["versions"].keys()
    assert spool.parent.name == "encode_images"


def test_what_a_killed_job_left_unfinished_is_removed_when_it_starts_again(results: Path, job):
    (results / "codes").mkdir()
    stale = [results / ".log.json.01234567.partial", results / "codes" / ".0.tar.89abcdef.partial"]
    others = [results / ".other.json.01234567.partial", results / "codes" / "0.tar"]
    for path in [*stale, *others]:
        path.write_text("half")
    (results / "log.json").write_text("{}")
    with job("encode_images", outputs=("codes", "log.json")):
        assert not any(path.exists() for path in stale)
    assert all(path.exists() for path in others)


def test_same_work_goes_on_in_the_same_record_and_other_work_does_not(results: Path, job):
    (results / "in.bin").write_bytes(b"1")
    settings = {"inputs": ("in.bin",), "outputs": (), "params": {"lr": 0.1}}
    for _ in range(2):
        with job("train_model", **settings):
            pass
    assert len(spools(results)) == 1
    (results / "experiment.json").write_text(json.dumps({"name": "demo", "seed": 0, "tables": ["another"]}))
    with job("train_model", **settings):
        pass
    assert len(spools(results)) == 1
    with job("train_model", **settings | {"params": {"lr": 0.2}}):
        pass
    (results / "in.bin").write_bytes(b"2")
    with job("train_model", **settings):
        pass
    with job("train_model", name="train_model[other]", **settings):
        pass
    assert len(spools(results)) == 4


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("too big"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(85), "KILLED")],
)
def test_how_a_job_ends_is_written_down(results: Path, job, error: BaseException, status: str):
    with pytest.raises(type(error)), job("train_model"):
        raise error
    assert events_of(results)[-1]["status"] == status
    assert not (spools(results)[0] / MANIFEST).exists()


def test_a_failed_rerun_keeps_the_manifest_of_the_run_before(results: Path, job):
    with job("train_model"):
        pass
    (spool,) = spools(results)
    whole = (spool / MANIFEST).read_bytes()
    with pytest.raises(ValueError, match="no"), job("train_model"):
        raise ValueError("no")
    assert (spool / MANIFEST).read_bytes() == whole
    run = replay(read_events(spool))[-1]
    assert faults(spool, run, running=False) == []
    # one that was killed is not taken for one whose last word was lost, which is
    lines = (spool / EVENTS).read_text().splitlines(keepends=True)
    (spool / EVENTS).write_text("".join(lines[:-1]))
    assert faults(spool, replay(read_events(spool))[-1], running=False) == []
    first = next(number for number, line in enumerate(lines) if '"event": "end"' in line)
    (spool / EVENTS).write_text("".join(lines[:first]))
    assert "breaks off" in faults(spool, replay(read_events(spool))[-1], running=False)[0]


def test_missing_inputs_and_outputs_are_named(results: Path, job):
    with pytest.raises(InputError, match=r"in\.bin does not exist"), job("train_model", inputs=("in.bin",)):
        pass
    with pytest.raises(InputError, match=r"out\.bin does not exist"), job("train_model", outputs=("out.bin",)):
        pass
    assert events_of(results)[-1]["status"] == "FAILED"


def test_other_ranks_say_nothing(results: Path, job, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", LAUNCHER: str(os.getppid())}.items():
        monkeypatch.setenv(name, value)
    with job("train_model", outputs=("never made",)) as running:
        running.metrics({"loss": 1.0}, step=1)
        running.commit(1)
        running.image(b"png", key="samples", step=1)
        running.figure("nowhere.png")
        running.result(table="t", cell="c", params={}, metrics={"x": 1})
    assert not (results / "tracking").exists()


def test_a_rank_that_another_program_left_in_the_environment_silences_nobody(results: Path, job, monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", LAUNCHER: "1234567"}.items():
        monkeypatch.setenv(name, value)
    with job("train_model") as running:
        running.metrics({"loss": 1.0}, step=1)
    assert kinds_of(results)[:2] == ["start", "metrics"]


def test_numbers_that_are_not_finite_are_kept(results: Path, job):
    with job("train_model") as running:
        running.metrics({"a": float("nan"), "b": float("-inf"), "c": 1}, step=1)
    values = next(event["values"] for event in events_of(results) if event["event"] == "metrics")
    assert values == {"a": "nan", "b": "-inf", "c": 1.0}


def test_pictures_and_figures_are_kept_by_value(results: Path, job):
    (results / "figure.png").write_bytes(b"figure")
    with job("train_model") as running:
        running.image(b"grid", key="samples/cfg 2", step=7)
        running.figure(results / "figure.png")
    (results / "figure.png").unlink()
    (spool,) = spools(results)
    kept = {event["event"]: spool / event["file"] for event in events_of(results) if "file" in event}
    assert (kept["image"].read_bytes(), kept["figure"].read_bytes()) == (b"grid", b"figure")


def test_a_torn_line_is_left_out_and_the_next_attempt_begins_on_its_own(results: Path, job):
    with job("train_model"):
        pass
    (spool,) = spools(results)
    with open(spool / "events.jsonl", "ab") as file:
        file.write(b'{"t": 1, "event": "metr')
    assert kinds_of(results)[-1] == "end"
    with job("train_model"):
        pass
    assert kinds_of(results) == ["start", "summary", "end"] * 2


class FullDisk:
    """Lets `os.write` fail as on a full disk while `full` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.full = False
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, data[:30])  # and only a part at a time


def test_a_full_disk_never_stops_a_training_and_loses_nothing_once_there_is_space(
    results: Path, job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    disk = FullDisk(monkeypatch)
    with job("train_model") as running:
        for step in range(1, 10):
            disk.full = 3 <= step <= 6
            running.metrics({"loss": step}, step=step)
            running.commit(step)
    assert [e["step"] for e in events_of(results) if e["event"] == "metrics"] == list(range(1, 10))
    assert [record.message for record in caplog.records if "kept in memory" in record.message] != []
    assert len([record for record in caplog.records if "kept in memory" in record.message]) == 1


def test_a_disk_that_stays_full_fails_the_job_at_its_end(results: Path, job, monkeypatch: pytest.MonkeyPatch):
    disk = FullDisk(monkeypatch)
    with pytest.raises(InputError, match="No space left"), job("train_model"):
        disk.full = True
    assert not (spools(results)[0] / MANIFEST).exists()


def test_threads_may_all_speak_at_once(results: Path, job):
    with job("train_model") as running:

        def speak(worker: int) -> None:
            for step in range(50):
                running.metrics({f"worker/{worker}": step}, step=step)

        threads = [threading.Thread(target=speak, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert kinds_of(results).count("metrics") == 400


SCRIPT = """
import sys, time
from dpar import tracking
with tracking.job(rule="train_model", experiment=sys.argv[1]) as job:
    job.metrics({"loss": 1}, step=1)
    print("running", flush=True)
    time.sleep(float(sys.argv[2]))
assert not any(name.split(".")[0] in ("mlflow", "torch") for name in sys.modules)
"""


def launch(results: Path, seconds: float, **settings) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(results / "experiment.json"), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)
    return process


def test_sigterm_ends_a_job_as_killed(results: Path):
    process = launch(results, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert events_of(results)[-1]["status"] == "KILLED"


def test_a_job_runs_without_mlflow_or_torch(results: Path):
    process = launch(results, 0)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert events_of(results)[-1]["status"] == "FINISHED"


def test_a_second_copy_waits_for_the_first_and_says_so(results: Path, job):
    with job("train_model"):
        second = launch(results, 0)
        assert second.stderr is not None
        said = second.stderr.readline()
        assert "train_model is already running" in said
        assert f"process {os.getpid()}" in said
        assert kinds_of(results).count("start") == 1
    second.communicate()
    assert second.returncode == 0
    assert kinds_of(results).count("start") == 2


def test_sixteen_jobs_at_once_do_not_disturb_each_other(results: Path, job):
    (results / "shared.bin").write_bytes(b"everybody reads this")

    def work(number: int) -> None:
        with job("encode_images", inputs=("shared.bin",), outputs=(f"{number}.bin",), params={"shard": number}):
            (results / f"{number}.bin").write_text(str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spools(results)) == 16
    assert all((spool / MANIFEST).exists() for spool in spools(results))


def test_speaking_costs_a_training_a_write_and_no_wait_for_the_disk(results: Path, job, monkeypatch):
    calls = dict.fromkeys(("write", "open", "fsync", "replace"), 0)

    def counted(name: str):
        function = getattr(os, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    with job("train_model") as running:
        for name in calls:
            monkeypatch.setattr(os, name, counted(name))
        for step in range(100):
            running.metrics({"train/loss": 1.0, "train/grad_norm": 2.0, "perf/step_ms": 3.0}, step=step)
        monkeypatch.undo()
    assert calls == {"write": 100, "open": 0, "fsync": 0, "replace": 0}


def test_a_folder_that_cannot_be_written_is_said_at_the_start(results: Path, job):
    (results / "tracking").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="cannot record the job"), job("train_model"):
        pass


def test_the_lock_is_free_after_the_job(results: Path, job):
    with job("train_model"):
        pass
    with open(spools(results)[0] / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_stages_use_is_reachable_from_the_package():
    assert tracking.job is not None
    assert tracking.Job is not None


def test_what_a_straggling_thread_says_after_the_end_is_dropped(results: Path, job):
    with job("train_model") as running:
        pass
    (results / "other.txt").touch()
    with open(results / "other.txt", "rb+"):  # may have the number of the record's file
        running.metrics({"loss": 1}, step=1)
        running.commit(1)
    assert (results / "other.txt").read_bytes() == b""
    assert kinds_of(results)[-1] == "end"
