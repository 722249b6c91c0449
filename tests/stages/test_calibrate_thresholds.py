import pytest

from dpar.errors import InputError
from dpar.files import read_json
from dpar.patchify import PatchCounts, calibrate, patch_starts
from dpar.stages import calibrate_thresholds
from tests.stages.scored import write_experiment, write_scored


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "tiny"


def run(results, experiment, manifest):
    output = results / "thresholds.json"
    calibrate_thresholds.main(["--experiment", str(experiment), "--manifest", str(manifest), "--output", str(output)])
    return read_json(output)


def test_each_wanted_mean_length_gets_its_threshold(results, capsys):
    grid = {"title": "a grid", "rows": [{"model": "dpar", "patchify.p_avg": 1.4, "patchify.max_length": 2}]}
    experiment = write_experiment(results, tables={"grid": grid})
    manifest, entropy = write_scored(results)
    found = run(results, experiment, manifest)["p_avg"]
    said = capsys.readouterr().out
    assert set(found) == {"1.4", "1.8"}  # the grid's and the models'
    rule = {"max_length": 4, "grid_width": 8}
    for target, entry in found.items():
        assert entry["threshold"] == calibrate(entropy, float(target), **rule)
        starts = patch_starts(entropy, threshold=entry["threshold"], **rule)
        assert entry["achieved"] == PatchCounts.of(starts).mean_patch_length
        assert entry["achieved"] == pytest.approx(float(target), abs=0.01)
        assert f"{entry['threshold']:.6f} nats" in said
    assert list((results / "tracking").rglob("manifest.json"))


def test_the_experiments_own_rule_is_used(results):
    patchify = {"p_avg": 1.8, "max_length": None, "row_boundary": False}
    experiment = write_experiment(results, patchify=patchify)
    manifest, entropy = write_scored(results)
    found = run(results, experiment, manifest)["p_avg"]
    assert found["1.8"]["threshold"] == calibrate(entropy, 1.8, max_length=None, grid_width=8, row_boundary=False)


def test_thresholds_in_nats_leave_nothing_to_calibrate(results):
    experiment = write_experiment(results, patchify={"threshold": 3.0})
    manifest, _ = write_scored(results)
    assert run(results, experiment, manifest) == {"p_avg": {}}


@pytest.mark.parametrize(
    ("changes", "codes", "message"),
    [
        ({"patchify": {"p_avg": 3.9}}, {}, r"they reach from 1\.0000 to 3\.7647"),
        ({}, {"scored": False}, "have no entropies"),
        ({}, {"resolution": 128}, "resolution is 128, expected 64"),
        ({}, {"vocab_size": 512}, "vocab_size is 512, expected 256"),
    ],
)
def test_what_cannot_be_calibrated_is_said_and_nothing_written(results, changes, codes, message):
    experiment = write_experiment(results, **changes)
    manifest, _ = write_scored(results, **codes)
    with pytest.raises(InputError, match=message):
        run(results, experiment, manifest)
    assert not (results / "thresholds.json").exists()
