import pytest

from dpar.errors import InputError
from dpar.files import read_json
from dpar.patches.calibration import calibrate
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import patch_starts
from dpar.stages import calibrate_threshold
from tests.stages.scored import write_experiment, write_scored


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "tiny"


def run(results, experiment, manifest, target=1.8):
    output = results / "thresholds" / f"pavg{target}.json"
    files = {"experiment": experiment, "manifest": manifest, "p-avg": target, "output": output}
    calibrate_threshold.main([word for name, value in files.items() for word in (f"--{name}", str(value))])
    return read_json(output)["p_avg"]


@pytest.mark.parametrize("target", [1.4, 1.8])
def test_a_wanted_mean_length_gets_its_threshold(results, capsys, target):
    experiment = write_experiment(results)
    manifest, entropy = write_scored(results)
    found = run(results, experiment, manifest, target)
    rule = {"max_length": 4, "grid_width": 8}
    assert list(found) == [str(target)]
    entry = found[str(target)]
    assert entry["threshold"] == calibrate(entropy, target, **rule)
    starts = patch_starts(entropy, threshold=entry["threshold"], **rule)
    assert entry["achieved"] == PatchCounts.of(starts).mean_patch_length
    assert entry["achieved"] == pytest.approx(target, abs=0.01)
    assert f"{entry['threshold']:.6f} nats" in capsys.readouterr().out
    assert list((results / "tracking").rglob("manifest.json"))


def test_the_experiments_own_rule_is_used(results):
    patchify = {"p_avg": 1.8, "max_length": None, "row_boundary": False}
    experiment = write_experiment(results, patchify=patchify)
    manifest, entropy = write_scored(results)
    found = run(results, experiment, manifest)
    assert found["1.8"]["threshold"] == calibrate(entropy, 1.8, max_length=None, grid_width=8, row_boundary=False)


@pytest.mark.parametrize(
    ("target", "codes", "message"),
    [
        (3.9, {}, r"they reach from 1\.0000 to 3\.7647"),
        (1.8, {"scored": False}, "have no entropies"),
        (1.8, {"resolution": 128}, "resolution is 128, expected 64"),
        (1.8, {"vocab_size": 512}, "vocab_size is 512, expected 256"),
    ],
)
def test_what_cannot_be_calibrated_is_said_and_nothing_written(results, target, codes, message):
    experiment = write_experiment(results)
    manifest, _ = write_scored(results, **codes)
    with pytest.raises(InputError, match=message):
        run(results, experiment, manifest, target)
    assert not (results / "thresholds").exists()
