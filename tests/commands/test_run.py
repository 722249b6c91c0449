"""`dpar run`: what it refuses, and what it says at the end."""

import contextlib
import fcntl
import re
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
import yaml

from dpar.commands import run, status, track
from dpar.data.images import ImageIndex, open_images
from dpar.errors import InputError
from dpar.experiment.loading import parse_experiment
from dpar.files import read_json, write_json
from dpar.train.restarts import say_restart
from dpar.workflow import journal
from dpar.workflow.announcement import BUDGET
from dpar.workflow.run import COMPARED, RETRAIN, SMOKE, retraining, run_lock
from tests.data.samples import folder_of_images
from tests.experiment.test_settings import demo
from tests.workflow.conftest import ROOT, job_counts, snakemake

__all__ = ["snakemake"]


def test_it_must_be_called_from_the_top_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no Snakefile"):
        run.main(["--config", "config/demo.yaml"])


def test_an_unknown_experiment_is_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=r"config/none\.yaml does not exist"):
        run.main(["--config", "config/none.yaml"])


def test_a_table_that_cannot_be_filled_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "mistaken.yaml"
    path.write_text(yaml.safe_dump(demo(tables={"t": {"title": "T", "rows": [{"model": "dparr"}]}})))
    with pytest.raises(InputError, match=r"tables\.t: .*: there is no model 'dparr'"):
        run.main(["--config", str(path), "--directory", str(tmp_path)])


def test_a_tracking_address_with_a_typo_is_one_line_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DPAR_TRACKING_URI", "htp://tracker:5000")
    with pytest.raises(InputError, match=r"'htp://tracker:5000' is not a tracking address"):
        run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path)])


def test_two_runs_into_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "results" / "demo" / "tracking"
    folder.mkdir(parents=True)
    with open(folder / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run"):
            run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path)])


def test_a_dry_run_next_to_a_run_into_the_same_folder_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    before = parse_experiment(demo(), "test").model_dump(mode="json")
    write_json(tmp_path / "results" / "demo" / "experiment.json", before)
    with run_lock(tmp_path / "results" / "demo"):
        files = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "results").rglob("*"))
        changes = ["--set", "sampling.cfg_scale=2.5", "--set", "evaluation.splits=3"]
        run.main(
            [
                "--directory",
                str(tmp_path),
                "--cores",
                "1",
                "-n",
                *changes,
                "--target",
                "results/demo/tokenizer/config.json",
            ]
        )
        assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "results").rglob("*")) == files
    said = capfd.readouterr()
    assert job_counts(said.out + said.err)["index_images"] == 2
    assert "changed since the last run" not in said.err, "no job of this target draws or measures"


@pytest.mark.parametrize(
    "arguments", [["--config", "name=other"], ["-C", "name=other"], ["--configfile", "other.yaml"]]
)
def test_the_lock_is_that_of_the_experiment_that_runs(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(ROOT)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(demo(name="other")))
    arguments = [word.replace("other.yaml", str(tmp_path / "other.yaml")) for word in arguments]
    seen = []
    monkeypatch.setattr(run, "_run", lambda command, lock, told, **_: seen.append(lock.name) or 0)
    flags = ["--config", "config/demo.yaml", "--directory", str(tmp_path), "--"]
    run.main([*flags, *arguments])
    run.main([*flags, "--directory", str(tmp_path / "else"), *arguments])
    places = [tmp_path / "results" / "other", tmp_path / "else" / "results" / "other"]
    assert seen == [str(place / "tracking" / "run.lock") for place in places]
    assert not (tmp_path / "results" / "demo").exists()
    with run_lock(places[0]), pytest.raises(InputError, match=r"another run into .*results/other"):
        run.main([*flags, *arguments])


def test_what_makes_the_experiment_invalid_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = ["--directory", str(tmp_path), "--"]
    with pytest.raises(InputError, match=r"demo\.yaml \+ --config is not a valid experiment:\n  --config: seed: "):
        run.main([*flags, "--config", "seed=none"])
    with pytest.raises(InputError, match=r"^absent\.yaml does not exist"):
        run.main([*flags, "--configfile", "config/demo.yaml", "absent.yaml"])


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")])
def test_a_run_that_is_asked_to_stop_says_that_it_can_go_on(tmp_path, capsys, number, name):
    stopping = f"import os, signal, time; os.kill(os.getppid(), {int(number)}); time.sleep(60)"
    with open(tmp_path / "run.lock", "w") as lock, pytest.raises(SystemExit) as stop:
        run._run([sys.executable, "-c", stopping], lock, {})
    assert stop.value.code == 128 + number
    said = capsys.readouterr().err
    assert f"interrupted ({name})" in said
    assert "the same command goes on" in said
    assert "mend" not in said


def test_a_failing_graph_is_an_error_that_says_to_run_again(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match="run the same command again"):
        run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path), "--cores", "1", "--", "no_such_target"])
    assert "No rule to produce no_such_target" in "".join(capfd.readouterr()), "snakemake took it for a target"


@pytest.mark.parametrize("target", ["tokenizer/report.json", "first_report.html", "./results/demo/first_report.html"])
def test_a_file_of_the_results_is_refused_before_snakemake_starts_with_its_full_path(tmp_path, monkeypatch, target):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "_run", lambda *_, **__: pytest.fail("Snakemake was started"))
    meant = f"results/demo/{target.removeprefix('./results/demo/')}"
    with pytest.raises(InputError, match=rf"^--target: {target} is called {meant}; say --target {meant}$"):
        run.main(["--directory", str(tmp_path), "--cores", "1", "-n", "--target", target])


def test_settings_and_targets_of_the_command_reach_the_graph(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    flags = ["--config", "config/demo.yaml", "--directory", str(tmp_path), "--cores", "1", "-n"]
    changes = ["--set", "sampling.shards=2", "--set", "sampling.seeds=[5]"]
    run.main([*flags, *changes, "--target", "comparison", "--", "--config", "codes={train_shards: 3}"])
    found = job_counts("".join(capfd.readouterr()))
    assert found["sample_images"] == 4, "two shards of one seed of two models"
    assert found["score_entropies"] == 4, "three shards for training, one held out"
    assert "all" not in found
    with pytest.raises(InputError, match=r"--target: comparisn .*did you mean comparison\?"):
        run.main([*flags, "--target", "comparisn"])
    with pytest.raises(InputError, match=r"two kinds of quotes belong in a file"):
        run.main([*flags, "--set", "tables.comparison.title=a'b\"c"])


def test_an_experiment_that_extends_another_runs_with_snakemake_alone(snakemake, tmp_path):
    images = "images: {source: generated, generated: {train: 640, val: 320}, resolution: 64, num_classes: 8}"
    (tmp_path / "own.yaml").write_text(f"extends: config/base/tiny.yaml\nname: own\n{images}\n")
    given = ["--dry-run", "--cores", "1", "--configfile", tmp_path / "own.yaml", "--config"]
    found = snakemake(*given, "set=[sampling.shards=2]")
    assert found.returncode == 0, found.stderr
    assert job_counts(found.stdout + found.stderr)["sample_images"] == 4
    refused = snakemake(*given, "sampling={num_imags: 7}")
    assert "--config: sampling.num_imags: there is no such setting" in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["comparison", "--dry-run"], {"comparison": 1, "describe_models": None}),
        (["--dry-run", "comparison"], {"comparison": 1, "describe_models": None}),
        (["table1", "comparison", "-n"], {"table1": 1, "comparison": 1, "describe_models": 1}),
        (["--dry-run"], {"all": 1}),
    ],
)
def test_targets_and_options_reach_snakemake_in_any_order(tmp_path, monkeypatch, capfd, arguments, jobs):
    monkeypatch.chdir(ROOT)
    run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path), "--cores", "1", "--", *arguments])
    found = job_counts("".join(capfd.readouterr()))
    assert {name: found.get(name) for name in jobs} == jobs


def test_a_target_is_made_alone_and_the_audit_finds_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path), "--cores", "1", "--", "table1"])
    results = tmp_path / "results" / "demo"
    said = capfd.readouterr()
    assert f"Results    {results}" in said.out
    assert re.fullmatch(r"1 of 1  describe_models \(\d+ (s|min)\)", said.err.splitlines()[-1])
    assert len(said.err.splitlines()) < 8
    run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path), "--cores", "1", "--", "table1"])
    assert "Nothing to be done" in capfd.readouterr().err
    assert (results / "tables" / "table1.md").is_file()
    assert not (results / "images").exists()
    with pytest.raises(SystemExit):  # the rest is missing
        track.main(["audit", "--results", str(results)])
    audit = capfd.readouterr().out
    assert "     6  tracked" in audit
    assert f"missing: {results}/report.html" in audit


def test_what_failed_is_said_last_with_the_end_of_its_log_and_status_says_it_too(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    folder = folder_of_images(tmp_path / "photos", each=40)
    (folder / "ant" / "3.png").write_bytes(b"cut off")
    images = {"source": "folder", "train": str(folder), "held_out": 0.2, "resolution": 64, "num_classes": 3}
    values = demo(images=images)
    values["evaluation"]["classifier"] |= {"dims": 8}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    flags = ["--config", str(tmp_path / "own.yaml"), "--directory", str(tmp_path)]
    with pytest.raises(InputError) as error:
        run.main([*flags, "--cores", "1", "--target", "results/demo/index/train.json"])
    last = str(error.value).splitlines()
    assert last[0] == "the run stopped before its end, with 0 of 1 jobs done"
    assert last[1] == "index_images train failed; the end of results/demo/logs/index_images/train.log:"
    assert any("ant/3.png" in line for line in last[2:-1])
    assert "run the same command again" in last[-1]
    shown = capfd.readouterr().err.splitlines()
    assert "this run: 1 job (1 index_images)" in shown
    assert shown[-1] == "failed  index_images train, log results/demo/logs/index_images/train.log"
    assert not any("resources:" in line or "wildcards:" in line for line in shown)
    assert "wildcards: split=train" in (tmp_path / "results/demo/logs/run.log").read_text()
    status.main(flags)
    said = capfd.readouterr().out
    assert "failed: 0 of 1 jobs" in said
    assert "ant/3.png" in said


def test_status_is_that_of_the_run_that_began_last_unless_one_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    here = ["--directory", str(tmp_path)]
    with pytest.raises(InputError, match="no run has left a journal in"):
        status.main(here)
    for began, name in enumerate(("photos", "demo", "trees")):
        monkeypatch.setattr(journal.time, "time", lambda began=began: 1000.0 + (began + 1) % 3)
        (tmp_path / "results" / name / "tracking").mkdir(parents=True)
        journal.write(tmp_path / "results" / name, "planned", anew=True, pid=1, jobs={"index_images": began})
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    for flags, name in (((), "demo"), (("--config", "config/demo.yaml"), "demo"), (("--set", "name=trees"), "trees")):
        status.main([*here, *flags])
        assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "results" / name)


def test_a_run_above_its_budget_is_refused_last_and_before_any_job(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=r"^this run takes about .* of this machine.*--budget") as error:
        run.main(["--directory", str(tmp_path), "--cores", "1", "--budget", "0"])
    assert "\n" not in str(error.value)
    assert "  trains   " in capfd.readouterr().err
    assert not (tmp_path / "results" / "demo" / "images").exists()
    with pytest.raises(InputError, match="no run has left a journal"):
        status.main(["--results", str(tmp_path / "none")])


@pytest.mark.parametrize(("answer", "budgets"), [(True, ["0", "8482"]), (False, ["0"])])
def test_at_a_terminal_a_run_above_its_budget_is_started_if_the_person_says_so(tmp_path, monkeypatch, answer, budgets):
    monkeypatch.chdir(ROOT)
    asked, given = [], []

    def refuses_first(results, command, lock, told):
        given.append(told[BUDGET])
        if len(given) == 2:
            return 0
        journal.write(results, "refused", anew=True, text="this run takes 7 hours; nothing was started", budget=8482)
        return 1

    monkeypatch.setattr(run, "_watched", refuses_first)
    monkeypatch.setattr(run, "approved", lambda bill: asked.append(bill) or answer)
    arguments = ["--directory", str(tmp_path), "--budget", "0"]
    with pytest.raises(InputError, match="nothing was started"):
        run.main(arguments)  # nobody sits there
    assert (asked, given) == ([], ["0.0"])
    given.clear()
    monkeypatch.setattr(run, "somebody_asks", lambda: True)
    with contextlib.nullcontext() if answer else pytest.raises(InputError, match="nothing was started"):
        run.main(arguments)
    assert asked == ["this run takes 7 hours"]
    assert [float(budget) for budget in given] == [float(budget) for budget in budgets]


def test_a_dry_run_says_which_settings_changed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    before = parse_experiment(demo(), "test").model_dump(mode="json")
    write_json(tmp_path / "results" / "demo" / "experiment.json", before)
    run.main(["--directory", str(tmp_path), "--cores", "1", "-n", "--set", "sampling.cfg_scale=2.5"])
    said = capfd.readouterr().err
    assert said.count("changed since the last run: sampling.cfg_scale was 2 and is 2.5") == 1
    assert said.count("  trains   tokenizer; entropy_model; dpar, dpar_p") == 1


def test_the_last_words_name_a_full_disk_of_which_no_log_can_tell(tmp_path, monkeypatch):
    assert "no space" not in run.last_words(tmp_path / "results" / "demo", 0.0, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=512))
    said = run.last_words(tmp_path / "results" / "demo", 0.0, 1)
    assert f"no space is left in {tmp_path} (512 bytes): free some" in said


def test_the_last_words_name_report_and_dashboard(tmp_path):
    assert "report.html" not in run.where_to_look(tmp_path), "a target may be made without it"
    (tmp_path / "report.html").touch()
    text = run.where_to_look(tmp_path)
    assert f"{tmp_path}/report.html" in text
    assert f"track ui --results {tmp_path}" in text


def test_what_would_be_trained_again_is_named_with_its_reason_and_the_way_on():
    again = {"results/demo/models/dpar/step400": "params have changed since last execution"}
    told = retraining(again, meant=False)
    assert "  results/demo/models/dpar/step400: settings or recipe have changed since last execution" in told
    assert "Nothing was started" in told
    assert "dpar run --retrain" in told
    assert "DPAR_RETRAIN=1" in told
    assert "Nothing was started" not in retraining(again, meant=True)
    assert "results/demo/models/dpar/step400" in retraining(again, meant=True)


@pytest.mark.parametrize("flags", [[], ["--retrain"]])
def test_retraining_is_told_to_the_snakefile_alone(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(ROOT)
    told = {}
    monkeypatch.setattr(run, "_run", lambda command, lock, said, **_: told.update(said) or 0)
    run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path), *flags])
    compared = {COMPARED: str((tmp_path / "results" / "demo").resolve())}
    assert told == {SMOKE: ""} | compared | ({RETRAIN: "1"} if flags else {})


def test_images_that_changed_since_they_were_indexed_are_told_even_if_nothing_is_to_be_done(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "_run", lambda *_, **__: 0)
    folder_of_images(tmp_path / "x")
    index = tmp_path / "results/demo/index/train.json"
    index.parent.mkdir(parents=True)
    ImageIndex.build(open_images("folder", str(tmp_path / "x")), resolution=8, num_classes=3).save(index)
    arguments = ["--config", "config/demo.yaml", "--directory", str(tmp_path)]
    run.main(arguments)
    assert "since then" not in capsys.readouterr().err
    (tmp_path / "x/cat/1.png").unlink()
    run.main(arguments)
    assert f"files of {tmp_path}/x since then: 1 gone; delete {index}" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "written"), [([], True), (["-n"], False), (["--target", "table1"], False)])
def test_settings_that_make_nothing_out_of_date_are_kept_where_nothing_is_to_be_done(
    tmp_path, monkeypatch, flags, written
):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "results" / "demo" / "experiment.json"
    old = parse_experiment(demo(), "test").model_dump(mode="json")
    write_json(path, old)
    monkeypatch.setattr(run, "_run", lambda *_, **__: 0)
    run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path), "--set", "training.log_every=7", *flags])
    assert (read_json(path)["training"]["log_every"] == 7) == written


@pytest.mark.parametrize("status", [0, 1])
def test_the_end_of_a_run_says_which_trainings_began_anew_in_it(tmp_path, monkeypatch, capsys, status):
    monkeypatch.chdir(ROOT)
    state = tmp_path / "results/demo/state/models/dpar"
    say_restart(state, "of a run before")

    def graph(*_, **__):
        say_restart(state, "seed changed: training begins anew")
        say_restart(tmp_path / "results/demo/state/tokenizer", "codes changed: training begins anew")
        return status

    monkeypatch.setattr(run, "_run", graph)
    capsys.readouterr()
    with pytest.raises(InputError, match="stopped before its end") if status else contextlib.nullcontext():
        run.main(["--config", "config/demo.yaml", "--directory", str(tmp_path)])
    said = capsys.readouterr().err.splitlines()[-2:]
    assert said == [f"in this run: {what} changed: training begins anew" for what in ("seed", "codes")]
