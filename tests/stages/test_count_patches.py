import numpy as np
import pytest

from dpar.errors import InputError
from dpar.experiment.cells import model_cells
from dpar.experiment.loading import load_experiment
from dpar.files import read_json, write_json
from dpar.model.flops import forward_gmacs, sampling_gmacs, training_gmacs
from dpar.model.variants import build_model, model_config
from dpar.patches.rule import patch_starts, static_starts
from dpar.stages import count_patches
from tests.stages.scored import write_experiment, write_scored

THRESHOLDS = {"p_avg": {"1.4": {"threshold": 2.75, "achieved": 1.4}, "1.8": {"threshold": 3.25, "achieved": 1.8}}}
TABLES = {
    "grid": {
        "title": "a grid",
        "rows": [{"model": "dpar"}],
        "vary": {"patchify.p_avg": [1.4, 1.8], "patchify.max_length": [2, 4, None]},
    },
    "switches": {
        "title": "Table 3",
        "rows": [
            {"model": "dpar", "patchify.strategy": "static", "patchify.p_avg": 1.81},
            {"model": "dpar", "patchify.max_length": None, "patchify.row_boundary": False},
            {"model": "dpar", "patchify.threshold": 3.5},
            {"model": "llamagen"},
        ],
    },
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "tiny"


def run(results, thresholds=THRESHOLDS, **changes):
    experiment = write_experiment(results, **({"tables": TABLES} | changes))
    manifest, entropy = write_scored(results)
    write_json(results / "thresholds.json", thresholds)
    output = results / "patch_counts.json"
    count_patches.main(
        [
            *("--experiment", str(experiment), "--manifest", str(manifest)),
            *("--thresholds", str(results / "thresholds.json"), "--output", str(output)),
        ]
    )
    return load_experiment(experiment), entropy, read_json(output)


def test_every_model_is_counted_as_its_own_rule_cuts(results, capsys):
    experiment, entropy, found = run(results)
    cells, said = model_cells(experiment), capsys.readouterr().out
    assert found["cells"].keys() == cells.keys()
    assert (found["images"], found["tokens"]) == (20, 64)
    assert len(cells) == 10
    for slug, cell in cells.items():
        entry, rule = found["cells"][slug], cell.patchify
        sizes = {"vocab_size": 256, "grid": (8, 8), "num_classes": 8}
        config = model_config(cell.transformer, **sizes)
        model = build_model(cell.transformer, **sizes)
        assert entry["parameters"] == sum(p.numel() for p in model.parameters())
        if slug == "llamagen":
            assert entry["patches"] is entry["mean_patch_length"] is entry["threshold"] is entry["patchify"] is None
            assert entry["steps"] == 64
            assert entry["forward_gmacs"] == pytest.approx(forward_gmacs(config))
            assert entry["sampling_gmacs"] == pytest.approx(sampling_gmacs(config))
            continue
        gate = model_config(experiment.entropy_model.model, **(sizes | {"num_classes": None}))
        if not rule.is_dynamic:
            assert entry["threshold"] is None
            starts, gate = static_starts(20, 64, 1.81).numpy(), None
        else:
            threshold = {1.4: 2.75, 1.8: 3.25, None: 3.5}[rule.p_avg]
            assert entry["threshold"] == threshold
            how = {"max_length": rule.max_length, "grid_width": 8, "row_boundary": rule.row_boundary}
            starts = patch_starts(entropy, threshold=threshold, **how)
        patches = starts.sum(1).astype(float)
        assert entry["patches"]["histogram"] == np.bincount(starts.sum(1), minlength=65).tolist()
        assert entry["patches"]["percentiles"]["50"] == np.percentile(patches, 50, method="inverted_cdf")
        assert entry["mean_patch_length"] == pytest.approx((64 / patches).mean())
        assert entry["steps"] == entry["patches"]["mean"] == pytest.approx(patches.mean())
        assert entry["forward_gmacs"] == pytest.approx(forward_gmacs(config, patches).mean())
        assert entry["training_gmacs"] == pytest.approx(training_gmacs(config, patches).mean())
        assert entry["sampling_gmacs"] == pytest.approx(sampling_gmacs(config, patches, entropy_model=gate).mean())
        assert entry["kv_cache_bytes"] > 0
        shown = "static" if not rule.is_dynamic else f"{entry['threshold']:g}"
        assert f"| {slug} | {shown} |" in said


def test_an_unguided_experiment_is_not_charged_for_guidance(results):
    experiment, _, guided = run(results)
    unguided = {**experiment.sampling.model_dump(mode="json"), "cfg_scale": 1.0}
    cell = model_cells(experiment)["llamagen"]
    without = count_patches.describe(
        experiment.model_copy(update={"sampling": type(experiment.sampling)(**unguided)}), cell, None
    )
    assert without["sampling_gmacs"] == pytest.approx(guided["cells"]["llamagen"]["sampling_gmacs"] / 2)


def test_a_threshold_that_was_not_calibrated_is_named(results):
    with pytest.raises(InputError, match=r"no threshold is calibrated to a mean patch length of 1\.4"):
        run(results, thresholds={"p_avg": {"1.8": THRESHOLDS["p_avg"]["1.8"]}})
    assert not (results / "patch_counts.json").exists()
