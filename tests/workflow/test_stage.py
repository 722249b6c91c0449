"""The frame of the stages: flags, the experiment, and the record of the job."""

from pathlib import Path

import pytest

from dpar.errors import InputError
from dpar.files import read_json, write_text
from dpar.tracking import made_by
from dpar.workflow.stage import RESTART, SPLIT, THRESHOLDS, Stage, flag
from tests.stages.experiments import write_experiment

STAGE = Stage("copy_notes", "Copies.", flag("--notes"), flag("--page", type=int, default=1), SPLIT, RESTART, THRESHOLDS)


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    experiment, notes = write_experiment(tmp_path), tmp_path / "notes"
    write_text(notes, "read")
    return ["--experiment", str(experiment), "--notes", str(notes), "--split", "val"]


def test_a_run_has_the_flags_and_the_experiment_that_they_name(tmp_path: Path, argv):
    run = STAGE.start([*argv, "--page", "3", "--thresholds", "a", "b"])
    assert (run.args.notes, run.args.page, run.args.split) == (tmp_path / "notes", 3, "val")
    assert (run.args.restart, run.args.thresholds) == (False, [Path("a"), Path("b")])
    assert run.experiment.name == "tiny"


def test_flags_without_a_default_have_to_be_given(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        STAGE.start(argv[:2])
    assert "copy_notes: error: the following arguments are required: --notes, --split" in capsys.readouterr().err


@pytest.mark.parametrize(("part", "name"), [(None, "copy_notes"), ("val/3", "copy_notes[val/3]")])
def test_a_job_is_recorded_under_its_rule_and_part(tmp_path: Path, argv, part, name):
    run = STAGE.start(argv)
    output = tmp_path / "copy"
    with run.job(part, inputs=[run.args.notes], outputs=[output], params={"page": 1}):
        write_text(output, "read")
    (manifest,) = (read_json(path, kind=dict) for path in tmp_path.glob("tracking/spool/copy_notes/*/manifest.json"))
    assert (manifest["rule"], manifest["name"], manifest["params"]) == ("copy_notes", name, {"page": 1})
    assert [[file["path"] for file in manifest[key]] for key in ("inputs", "outputs")] == [["notes"], ["copy"]]
    run.check(made_by(name, output))
    with pytest.raises(InputError, match="copy_other"):
        run.check(made_by("copy_other", output))
