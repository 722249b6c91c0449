"""ImageNet's two experiments through every rule in their smoke, and the smoke of a run for which nobody asked."""

import sys

import pytest

from dpar.commands import track
from dpar.errors import InputError
from dpar.experiment.smoke import composed
from dpar.files import write_json
from dpar.workflow.run import SLURM_RUN, SMOKE, smoke_of_run
from tests.workflow.conftest import ROOT
from tests.workflow.imagenet import settings, write_images, write_pretrained
from tests.workflow.jobs import listed_jobs, within
from tests.workflow.test_graph import RULES

# Rules for which an experiment has no use: it trains nothing that it imports, and draws no images of its own.
IMPORTED = {"generate_images", "train_tokenizer", "train_classifier", "calibrate_threshold"}
UNUSED = {
    "imagenet256": IMPORTED,
    # without gates, grids and probes; how the distance orders images is measured at 256 pixels
    "imagenet384": IMPORTED
    | {"import_entropy_model", "calibrate_gate", "compare_gates", "linear_probe", "plot_pareto"}
    | {"measure_degradations"},
}
TARGETS = {"imagenet256": ["all", "figure_patches", "degradations"], "imagenet384": ["all", "figure_patches"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNUSED)
def test_every_rule_of_the_imagenet_experiments_runs_in_their_smoke(name, tmp_path, monkeypatch, capsys):
    """The commands of `dpar run --smoke tiny`, in this process, with a narrow Inception for the published one."""
    monkeypatch.chdir(ROOT)
    side = int(name.removeprefix("imagenet"))
    write_images(tmp_path)
    write_pretrained(tmp_path, (side // 16, side // 16), monkeypatch)
    changes = [f"{key}={value}" for key, value in settings(name).items()]
    command = [sys.executable, "-m", "dpar.cli", "run", "--smoke", "tiny", "--config", f"config/{name}.yaml"]
    command += ["--directory", str(tmp_path), "-n", "--target", *TARGETS[name]]
    command += [word for change in changes for word in ("--set", change)]
    jobs = listed_jobs([*command, "--", "--printshellcmds"], tmp_path, ROOT)
    assert {job.rule for job in jobs} == RULES.keys() - UNUSED[name]

    experiment, _ = composed([f"config/{name}.yaml"], changes, smoke="tiny")
    results = tmp_path / "results" / f"{name}.smoke"
    write_json(results / "experiment.json", experiment.model_dump(mode="json"))
    with within(tmp_path):
        for job in jobs:
            job.run()
        assert f"smoke: every command of {name} once" in (results / "report.html").read_text()
        relative = str(results.relative_to(tmp_path))
        track.main(["sync", "--results", relative])
        capsys.readouterr()
        track.main(["audit", "--results", relative, "--snakefile", str(ROOT / "Snakefile")])
    said = capsys.readouterr().out
    assert "     0  missing\n     0  untracked\n     0  changed" in said
    assert [path.name for path in (tmp_path / "results").iterdir()] == [results.name]


def test_a_run_under_the_slurm_profile_without_a_target_is_the_smoke(monkeypatch):
    """So is one of plain snakemake; what was decided is handed on to the jobs, which are given no targets."""
    monkeypatch.setenv(SMOKE, "")  # what a test leaves unset is not unset again after it
    monkeypatch.delenv(SMOKE)
    monkeypatch.delenv(SLURM_RUN, raising=False)
    assert smoke_of_run(list) is None
    for targets, kind in (([], "short"), (["all"], None)):
        monkeypatch.delenv(SMOKE, raising=False)
        monkeypatch.setenv(SLURM_RUN, "dpar-test")
        assert smoke_of_run(lambda targets=targets: targets) == kind
        assert smoke_of_run(list) == kind
    monkeypatch.setenv(SMOKE, "tiny")
    assert smoke_of_run(list) == "tiny"
    monkeypatch.setenv(SMOKE, "large")
    with pytest.raises(InputError, match="DPAR_SMOKE: found 'large'; expected short or tiny"):
        smoke_of_run(list)
