import json
import math
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dpar.errors import InputError
from dpar.files import sha256_file
from dpar.mirror import sync as mirror
from dpar.mirror.runs import RunWriter, entity_name
from dpar.mirror.store import Store, find_store, mlflow_environment, open_store, writer_lock
from dpar.tracking.ledger import read_events, spools

fork = multiprocessing.get_context("fork")


def in_child(action: Callable[[], object]) -> int | None:
    """The exit code of a process that does `action`."""
    child = fork.Process(target=action)
    child.start()
    child.join()
    return child.exitcode


def content(query) -> dict[str, list]:
    """What a reader of the store sees, without the identities that MLflow draws at random."""
    return {
        "runs": query(
            "select name, status, start_time, end_time from runs where lifecycle_stage='active' order by 1, 3"
        ),
        "metrics": query(
            "select name, key, value, timestamp, step, is_nan from metrics join runs using (run_uuid) order by 1, 2, 5"
        ),
        "params": query("select name, key, value from params join runs using (run_uuid) order by 1, 2"),
        "tags": query(
            "select name, key, value from tags join runs using (run_uuid) where key not like 'mlflow.%' order by 1, 2"
        ),
        "models": query("select name, source_run_id is null from logged_models order by 1"),
        "links": query("select source_type, destination_type, count(*) from inputs group by 1, 2 order by 1, 2"),
        "datasets": query("select name, digest, experiment_id from datasets order by 1, 3"),
    }


@pytest.fixture
def recorded(results: Path, job) -> Path:
    """Results with a training, its evaluation and a table, one row of it with a picture."""
    Image.new("RGB", (40, 30), (200, 30, 30)).save(results / "grid.png")
    weights = ("model/model.safetensors", "model/config.json")
    (results / "model").mkdir()
    with job(
        "train_model", name="train_model[dpar]", outputs=weights, params={"lr": 1e-3, "patch.max_length": 4}
    ) as run:
        for step in range(1, 41):
            run.metrics({"train/loss": 5 / step, "train/odd*name": math.nan if step == 3 else step}, step=step)
            if step % 10 == 0:
                run.image(results / "grid.png", key="samples", step=step)
                run.commit(step)
        (results / weights[0]).write_bytes(b"weights")
        (results / weights[1]).write_text("{}")
    with job("evaluate_likelihood", inputs=weights, outputs=("likelihood.json",)) as run:
        (results / "likelihood.json").write_text("{}")
        run.summary({"val/nll": 3.3085489812})
        run.figure(results / "grid.png")
    with job("make_table", name="make_table[t]", inputs=("likelihood.json",), outputs=("t.csv",)) as run:
        (results / "t.csv").write_text("nll\n3.3\n")
        run.note("### A table")
        for cell, nll in (("a", 3.3), ("b", 3.4)):
            run.result(
                table="t",
                cell=cell,
                params={"threshold": nll},
                metrics={"val/nll": nll},
                sources=[results / "likelihood.json"],
                image=results / "grid.png" if cell == "a" else None,
            )
    return results


def test_everything_a_job_says_can_be_found_in_the_store(recorded: Path, store: Store, query):
    counts = mirror.sync(store)
    assert counts is not None
    assert (counts.jobs, counts.running, counts.problems) == (3, 0, [])
    runs = dict(query("select name, status from runs where lifecycle_stage='active'"))
    assert runs.keys() == {"train_model[dpar]", "evaluate_likelihood", "make_table[t]", "t", "a", "b"}
    assert set(runs.values()) == {"FINISHED"}
    steps = query("select step from metrics where key='train/loss' order by step")
    assert [step for (step,) in steps] == list(range(1, 41))
    assert query("select step from metrics where key='train/odd_name' and is_nan=1") == [(3,)]
    tags = dict(query("select key, value from tags join runs using (run_uuid) where name='train_model[dpar]'"))
    assert tags["dpar.nonfinite"] == "train/odd*name = nan at step 3; 1 such values"
    assert tags["mlflow.source.name"] == "Snakefile:train_model"
    assert dict(query("select key, value from params join runs using (run_uuid) where name='train_model[dpar]'")) == {
        "lr": "0.001",
        "patch.max_length": "4",
    }
    assert query("select value from metrics where key='val/nll' and step=0 order by 1") == [(3.3,), (3.3085,), (3.4,)]
    assert query("select name from datasets order by 1") == [
        ("likelihood.json",),
        ("model/config.json",),
        ("model/model.safetensors",),
    ]
    assert query("select name from logged_models") == [("model",)]
    assert query("select metric_name, metric_value from logged_model_metrics") == [("val/nll", 3.3085)]
    experiments = query("select name from experiments where lifecycle_stage='active' order by 1")
    assert experiments == [("dpar/demo/pipeline",), ("dpar/demo/results",), ("dpar/demo/train",)]


def test_the_example_in_python_of_the_page_on_the_dashboard_reads_the_rows(recorded: Path, store: Store):
    mirror.sync(store)
    page = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    read = "found = rows[['tags.mlflow.runName', 'params.threshold', 'metrics.val/nll']].values.tolist()"
    code = code.replace("results/demo", str(recorded)) + f"import json\n{read}\nprint('found', json.dumps(found))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=mlflow_environment())
    assert said.returncode == 0, said.stderr
    rows = json.loads(said.stdout.rpartition("found")[2])  # of runs that began at once the order is nobody's
    assert sorted(row for row in rows if row[0] != "t") == [["a", "3.3", 3.3], ["b", "3.4", 3.4]]


def test_small_files_are_copied_and_large_ones_are_named(recorded: Path, store: Store, dump, query, monkeypatch):
    monkeypatch.setattr(mirror, "SMALL", 7)
    mirror.sync(store)
    names = [path.rpartition("/artifacts/")[2] for path in dump()[1]]
    assert sorted(name for name in names if name.startswith("outputs/")) == [
        "outputs/likelihood.json",
        "outputs/model/config.json",
    ]
    assert not any(name.endswith(".safetensors") for name in names)
    assert sum(name.startswith("images/samples+step+") and name.endswith(".png") for name in names) == 4 + 1
    assert "figures/grid.png" in names
    assert names.count("provenance/manifest.json") == names.count("config/experiment.json") == 3
    ((note,),) = query("select value from tags join runs using (run_uuid) where name='b' and key='mlflow.note.content'")
    assert "`likelihood.json`: [evaluate_likelihood](#/experiments/" in note
    assert "- code: commit " in note
    assert "- training: [train_model[dpar]](#/experiments/" in note
    assert "`dpar lineage t:b` prints every job between." in note


def test_each_run_lists_its_files_with_address_size_and_digest_and_a_table_its_rows(recorded: Path, store, dump, query):
    mirror.sync(store)
    tables: dict[str, list[dict]] = {}
    for path, content in dump()[1].items():
        if "/tables/" in path:
            value = json.loads(content)
            rows = [dict(zip(value["columns"], row, strict=True)) for row in value["data"]]
            tables.setdefault(Path(path).name, []).extend(rows)
    listed = {row["file"]: row for row in tables["outputs.json"]}
    assert listed.keys() == {"model/model.safetensors", "model/config.json", "likelihood.json", "t.csv"}
    for name, row in listed.items():
        file = recorded / name
        assert (row["bytes"], row["sha256"]) == (file.stat().st_size, sha256_file(file))
        assert row["uri"] == file.resolve().as_uri()
    assert [(row["row"], row["val/nll"], row["threshold"]) for row in tables["rows.json"]] == [
        ("a", 3.3, "3.3"),
        ("b", 3.4, "3.4"),
    ]
    logged = query("select value from tags where key = 'mlflow.loggedArtifacts'")
    assert sorted(value for (value,) in logged) == [
        *['[{"path": "tables/outputs.json", "type": "table"}]'] * 3,
        '[{"path": "tables/rows.json", "type": "table"}]',
    ]
    took = query("select value from metrics where key='time/wall_s' and run_uuid in"
                 " (select run_uuid from runs where name='train_model[dpar]')")  # fmt: skip
    costs = query("select distinct value from metrics where key='cost/training_s'")
    assert costs == took


def test_a_second_sync_changes_nothing(recorded: Path, store: Store, dump):
    mirror.sync(store)
    before = dump()
    counts = mirror.sync(store)
    assert counts is not None
    assert (counts.jobs, counts.points) == (0, 0)
    assert dump() == before


def test_sending_everything_again_changes_nothing_a_reader_sees(recorded: Path, store: Store, query, dump):
    mirror.sync(store)
    before, files_before = content(query), dump()[1]
    client = open_store(store)
    for run_id, key in query("select run_uuid, key from tags where key = 'mlflow.dpar.mirrored'"):
        client.delete_tag(run_id, key)
    counts = mirror.sync(store)
    assert counts is not None
    assert counts.jobs == 3
    assert content(query) == before
    assert dump()[1] == files_before


def test_a_sync_that_is_killed_anywhere_goes_on_where_it_stopped(recorded: Path, store: Store, migrated: Path, query):
    def until(call: int) -> None:
        from mlflow import MlflowClient

        calls = 0
        for name in ("log_batch", "log_artifact", "log_artifacts", "create_run", "create_logged_model", "log_outputs"):
            true_method = getattr(MlflowClient, name)

            def counted(*args, true_method=true_method, **kwargs):
                nonlocal calls
                calls += 1
                if calls > call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return true_method(*args, **kwargs)

            setattr(MlflowClient, name, counted)
        mirror.sync(store)

    for call in (0, 1, 2, 4, 6, 3, 5, 9):  # each goes on from where the one before was killed
        assert in_child(lambda call=call: until(call)) == -signal.SIGKILL
    mirror.sync(store)
    after_kills = content(query)
    other = find_store(recorded, f"sqlite:///{recorded / 'uninterrupted.db'}")
    (recorded / "uninterrupted.db").write_bytes(migrated.read_bytes())
    mirror.sync(other)
    with sqlite3.connect(recorded / "uninterrupted.db") as connection:
        expected = content(lambda sql: connection.execute(sql).fetchall())
    assert after_kills == expected


def test_four_syncs_at_once_make_no_duplicates(recorded: Path, store: Store, query):
    children = [fork.Process(target=mirror.sync, args=(store,)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert query("select count(*) from runs where lifecycle_stage='active'") == [(6,)]
    assert query("select count(*) from metrics where key='train/loss'") == [(40,)]
    assert query("select count(*) from logged_models") == [(1,)]


TRAINING = """
import json, os, sys, time
from pathlib import Path
from dpar import tracking
experiment, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
with tracking.job(rule="train_model", experiment=experiment) as job:
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    job.commit(done)
    for step in range(done + 1, 201):
        job.metrics({"train/loss": 1 / step}, step=step)
        if step % 20 == 0:
            aside = checkpoint.with_suffix(".tmp")
            aside.write_text(str(step))
            os.replace(aside, checkpoint)
            job.commit(step)
        time.sleep(0.01)
"""


def test_killed_at_any_step_and_resumed_there_is_one_run_with_every_step_once(results: Path, store: Store, query):
    generator = random.Random(0)
    command = [sys.executable, "-c", TRAINING, str(results / "experiment.json"), str(results / "checkpoint")]

    def steps() -> list[int]:
        return [step for (step,) in query("select step from metrics where key='train/loss' order by step")]

    def attempts() -> int:
        return sum(event["event"] == "start" for spool in spools(results) for event in read_events(spool))

    for attempt in (1, 2, 3):
        training = subprocess.Popen(command)
        while attempts() < attempt:
            time.sleep(0.01)
        time.sleep(0.1 + generator.random() * 0.15)
        training.kill()
        training.wait()
        mirror.sync(store)
        seen = steps()
        assert seen == list(range(1, len(seen) + 1))
        assert query("select status from runs") == [("KILLED",)]
    subprocess.run(command, check=True)
    mirror.sync(store)
    assert steps() == list(range(1, 201))
    assert query("select value from metrics where key='train/loss' order by step") == [(1 / s,) for s in range(1, 201)]
    assert query("select status from runs") == [("FINISHED",)]
    assert query("select value from tags where key='dpar.attempts'") == [("4",)]


def test_a_row_of_a_table_names_its_images_its_model_and_what_it_was_made_from(results: Path, store, job, query):
    with job("index_images", outputs=("index.json",)):
        (results / "index.json").write_text('{"source": "folder", "path": "photos", "count": 3}')
    with job("train_model", inputs=("index.json",), outputs=("model/model.safetensors",)):
        (results / "model").mkdir()
        (results / "model/model.safetensors").write_text("weights")
    with job("make_table") as running:
        row = {"cell": "row", "params": {"threshold": 2.345678901, "max_length": 4}, "metrics": {"fid": 2}}
        running.result(table="t", sources=[results / "model/model.safetensors"], **row)
    mirror.sync(store)
    ((run,),) = query("select run_uuid from runs where name = 'row'")
    datasets = "select datasets.name from inputs join datasets on dataset_uuid = source_id where destination_id = ?"
    assert query(datasets, run) == [("index.json",)]
    models = "select logged_models.name from inputs join logged_models on model_id = destination_id where source_id = ?"
    assert query(models, run) == [("model",)]
    params = dict(query("select key, value from params where run_uuid = ?", run))
    assert params == {"table": "t", "threshold": "2.3457", "max_length": "4"}
    ((note,),) = query("select value from tags where key = 'mlflow.note.content' and run_uuid = ?", run)
    assert "- images: index.json: source folder, path photos, count 3\n- training: [train_model](#/exp" in note


def test_a_row_adds_up_the_pieces_of_its_training_and_names_the_state_that_was_measured(
    results: Path, store: Store, job, query
):
    """Milestones are jobs that go on from one another; two trainings of two pieces each cost what one of them took."""
    last = []
    for seed in (0, 1):
        pieces = [f"models/dpar_seed{seed}/step{step}/model.safetensors" for step in (2, 4)]
        for number, weights in enumerate(pieces):
            read, params = tuple(pieces[:number]), {"seed": seed, "milestone": weights}
            with job("train_model", name=f"train_model[{weights}]", inputs=read, outputs=(weights,), params=params):
                (results / weights).parent.mkdir(parents=True)
                (results / weights).write_text(weights)
                time.sleep(0.05 * (2 + number + seed))
        last.append(results / pieces[-1])
    with job("make_table") as running:
        running.result(table="t", cell="row", params={}, metrics={"val/nll": 4.0}, sources=last)
    mirror.sync(store)
    took = query("select value from metrics join runs using (run_uuid) where key='time/wall_s' and name like 'train_%'")
    assert len(took) == 4
    ((cost,),) = query("select value from metrics where key='cost/training_s'")
    assert cost == pytest.approx(sum(seconds for (seconds,) in took) / 2, rel=1e-4)
    models = "select logged_models.name from inputs join logged_models on model_id = destination_id"
    read = query(f"{models} join runs on run_uuid = source_id where runs.name = 'row' order by 1")
    assert read == [("models-dpar_seed0-step4",), ("models-dpar_seed1-step4",)]
    ((note,),) = query(
        "select value from tags join runs using (run_uuid) where name='row' and key='mlflow.note.content'"
    )
    assert note.count("- training: [train_model[") == 4
    assert ", 4 jobs" in note


def test_a_running_job_shows_up_to_its_last_commit(results: Path, store: Store, job, query):
    with job("train_model") as running:
        for step in range(1, 8):
            running.metrics({"loss": step}, step=step)
        running.commit(5)
        counts = mirror.sync(store)
        assert counts is not None
        assert counts.running == 1
        assert query("select max(step), count(*) from metrics") == [(5, 5)]
        assert query("select status from runs") == [("RUNNING",)]
    mirror.sync(store)
    assert query("select max(step) from metrics where key='loss'") == [(7,)]
    assert query("select status from runs") == [("FINISHED",)]


def test_a_job_of_another_host_that_falls_silent_is_called_stale_and_not_failed(
    results: Path, store: Store, job, query, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mirror, "is_running", lambda *_: None)
    with job("train_model") as running:
        running.metrics({"loss": 1}, step=1)
        mirror.sync(store)
        assert query("select count(*) from tags where key='dpar.stale'") == [(0,)]
        (spool,) = spools(results)
        os.utime(spool / "events.jsonl", (0, 0))
        mirror.sync(store)
        assert query("select value from tags where key='dpar.stale'") == [("true",)]
        assert query("select status from runs") == [("RUNNING",)]
        running.metrics({"loss": 1}, step=2)
    mirror.sync(store)
    assert query("select count(*) from tags where key='dpar.stale'") == [(0,)]
    assert query("select status from runs") == [("FINISHED",)]


def test_going_back_before_what_is_shown_makes_a_new_run_that_names_the_old(results: Path, store: Store, job, query):
    for sign in (1, -1):
        with job("train_model") as running:
            for step in range(1, 4):
                running.metrics({"loss": sign * step}, step=step)
        mirror.sync(store)
    assert query("select name from runs order by start_time") == [("train_model",), ("train_model (2)",)]
    links = dict(query("select key, run_uuid from tags where key in ('dpar.superseded_by', 'dpar.forked_from')"))
    names = dict(query("select run_uuid, name from runs"))
    assert {key: names[run] for key, run in links.items()} == {
        "dpar.superseded_by": "train_model",
        "dpar.forked_from": "train_model (2)",
    }


def test_a_new_version_of_a_table_replaces_its_rows(results: Path, store: Store, job, query):
    def rows() -> list[tuple]:
        return query(
            "select runs.name, value from runs join metrics using (run_uuid) join experiments using (experiment_id)"
            " where experiments.name like '%results' and runs.lifecycle_stage='active' order by 1"
        )

    for values in ({"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 3.0}):
        with job("make_table", params={"version": str(values)}) as running:
            for cell, value in values.items():
                running.result(table="t", cell=cell, params={}, metrics={"eval/fid": value})
        mirror.sync(store)
        assert rows() == list(values.items())


def test_a_picture_that_cannot_be_read_is_a_problem_and_no_obstacle(results: Path, store: Store, job, query):
    with job("train_model") as running:
        running.image(b"no picture", key="samples", step=1)
        running.metrics({"loss": 1}, step=1)
    counts = mirror.sync(store)
    assert counts is not None
    assert len(counts.problems) == 1
    assert "samples-00000001.png cannot be shown" in counts.problems[0]
    assert query("select status from runs") == [("FINISHED",)]


def test_many_shards_of_a_folder_are_one_dataset(results: Path, store: Store, job, query):
    shards = tuple(f"codes/{number:05d}.parquet" for number in range(30))
    (results / "codes").mkdir()
    for number, shard in enumerate(shards):
        (results / shard).write_text(str(number))
    with job("index_codes", inputs=shards):
        pass
    mirror.sync(store)
    assert query("select name from datasets") == [("codes",)]


def test_rebuild_gives_the_same_store_and_leaves_nothing_of_the_old(recorded: Path, store: Store, query, dump):
    mirror.sync(store)
    before = content(query)
    kept = sorted(path.rpartition("/artifacts/")[2] for path in dump()[1] if "+step+" not in path)
    mirror.rebuild(store)
    assert content(query) == before
    assert sorted(path.rpartition("/artifacts/")[2] for path in dump()[1] if "+step+" not in path) == kept
    assert store.database is not None
    assert not [path.name for path in store.database.parent.iterdir() if ".partial" in path.name]


def test_what_was_recorded_without_a_store_arrives_later(recorded: Path, store: Store, query):
    away = find_store(recorded, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"no MLflow server at http://127\.0\.0\.1:9"):
        mirror.sync(away)
    mirror.sync(store)
    assert query("select count(*) from metrics where key='train/loss'") == [(40,)]


def test_a_store_that_refuses_says_so_and_loses_nothing(recorded: Path, store: Store, query, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    def locked(*_: object, **__: object) -> None:
        raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "points", locked)
        with pytest.raises(InputError, match="refused: database is locked; the records wait on disk"):
            mirror.sync(store)
    mirror.sync(store)
    assert query("select count(*) from metrics where key='train/loss'") == [(40,)]


def test_one_record_that_the_store_does_not_take_is_named_and_the_others_go_through(
    recorded: Path, store: Store, query, monkeypatch
):
    from mlflow.exceptions import MlflowException

    true_params = RunWriter.params

    def picky(self: RunWriter, params: dict) -> None:
        if "lr" in params:
            raise MlflowException.invalid_parameter_value("not this one")
        true_params(self, params)

    monkeypatch.setattr(RunWriter, "params", picky)
    counts = mirror.sync(store)
    assert counts is not None
    assert len(counts.problems) == 1
    assert "train_model" in counts.problems[0]
    assert query("select status from runs where name='evaluate_likelihood'") == [("FINISHED",)]


def test_sync_does_not_wait_when_asked_not_to(recorded: Path, store: Store):
    with writer_lock(store):
        assert mirror.sync(store, wait=False) is None


def test_watch_ends_with_the_process_it_waits_for_and_after_its_last_word(results: Path, store: Store, query):
    command = [sys.executable, "-c", TRAINING, str(results / "experiment.json"), str(results / "checkpoint")]
    training = subprocess.Popen(command)
    mirror.watch(store, 0.2, training.pid)
    training.wait()
    assert query("select max(step) from metrics where key='train/loss'") == [(200,)]
    assert query("select status from runs") == [("FINISHED",)]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("train/loss", "train/loss"),
        ("FD[classifier,32]", "FD_classifier_32_"),
        ("../x", "x"),
        ("/a//b", "a/b"),
        ("..", "unnamed"),
    ],
)
def test_names_are_made_acceptable(key: str, name: str):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    assert entity_name(key) == name
    for validate in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        validate(entity_name(key))


def test_the_manifest_in_the_store_is_the_one_on_disk(recorded: Path, store: Store, dump):
    mirror.sync(store)
    stored = [content for path, content in dump()[1].items() if path.endswith("manifest.json")]
    on_disk = [(spool / "manifest.json").read_bytes() for spool in spools(recorded)]
    assert sorted(stored) == sorted(on_disk)
