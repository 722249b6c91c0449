"""Measurements that are not of what a table's rows say, or do not belong together, are refused by name."""

import math
from copy import deepcopy

import pytest

from dpar.errors import InputError
from dpar.experiment.cells import sample_cells, table_rows
from dpar.experiment.loading import parse_experiment
from dpar.report.agreement import expect_agreement, expect_patches
from dpar.report.measured import Measurements
from tests.experiment.test_settings import demo
from tests.report.made_up import made_up_floor, metrics

E_TH = 3.21


def experiment_with(**changes):
    rows = [{"model": "dpar"}, {"model": "llamagen"}]
    return parse_experiment(demo(tables={"t": {"title": "T", "linear_probe": True, "rows": rows}}, **changes), "test")


def stated(experiment):
    """Measurements that state all that the stages write of the samples and states of `experiment`."""
    found = {"metrics": {}, "likelihoods": {}, "probes": {}, "thresholds": {"p_avg": {"1.8": {"threshold": E_TH}}}}
    found |= {"costs": {}, "floor": made_up_floor()}
    rows = {row.model.slug: row for row in table_rows(experiment, "t")}
    for slug, cell in sample_cells(experiment).items():
        is_dpar, step = rows[cell.model].model.transformer.is_dpar, int(cell.milestone.removeprefix("step"))
        for seed in cell.sampling.seeds:
            measured = metrics(1.0, samples=cell.sampling.num_images)
            measured["conditions"] |= {"reference_digest": "re", "k": 3}
            measured["conditions"]["drawn"] = {
                "cell": slug,
                "seed": seed,
                "sampling": cell.sampling.model_dump(mode="json", exclude={"seeds", "compile"}),
                "patchify": cell.patchify.model_dump(mode="json") if is_dpar else None,
                "threshold": 3.2100000381469727 if is_dpar else None,  # in float32
                "networks": {"model": f"{slug} weights"},
                "step": step,
                "resolution": experiment.images.resolution,
            }
            found["metrics"][slug, seed] = measured
        made = {"model": f"{slug} weights", "step": step}
        found["likelihoods"][cell.model, cell.milestone] = {"nll": 4.0, "mean_patch_length": None, **made}
        found["probes"][cell.model, cell.milestone] = {"top1": 5.0, "conditions": made}
    found["floor"]["conditions"] |= {"reference_digest": "re", "k": 3, "reference_samples": 48}
    return found


def agreed(experiment, found):
    expect_agreement(experiment, "t", Measurements(**found))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling.cfg_scale": 3.0}, r"sampling\.cfg_scale 2\.0, its row asks for 3\.0"),
        (
            {"sampling.cfg_interval": (0.2, 1.0)},
            r"sampling\.cfg_interval \[0\.0, 1\.0\], its row asks for \[0\.2, 1\.0\]",
        ),
        ({"sampling.temperature": 0.5}, r"sampling\.temperature 1\.0, its row asks for 0\.5"),
        ({"sampling.labels": "uniform"}, r"sampling\.labels balanced, its row asks for uniform"),
        ({"patchify.max_length": 3}, r"patchify\.max_length 4, its row asks for 3"),
        ({"patchify.row_boundary": False}, r"patchify\.row_boundary True, its row asks for False"),
        ({"training.steps": 800}, r"after training step 400, its row asks for dpar/step800"),
        ({"sampling.batch_size": 3}, None),
        ({"sampling.shards": 3}, None),
        ({"sampling.compile": True}, None),
    ],
)
def test_samples_of_other_settings_are_refused_with_both_values(changes, said):
    before = experiment_with()
    found = stated(before)
    agreed(before, found)
    values = demo(tables=before.model_dump(mode="json")["tables"])
    for key, value in changes.items():
        group, name = key.split(".")
        values[group] = {**values[group], name: value}
    values["training"] = {key: value for key, value in values["training"].items() if key != "milestones"}
    after = parse_experiment(values, "test")
    if said is None:
        agreed(after, found)
    else:
        with pytest.raises(InputError, match=rf"metrics/dpar/seed0\.json measures .*{said}: `dpar run` ") as refusal:
            agreed(after, found)
        assert "\n" not in str(refusal.value)


def change_of(place, value):
    """A change of one field of `stated`."""

    def change(found):
        *folders, name = place
        for key in folders:
            found = found[key]
        if value is None:
            del found[name]
        else:
            found[name] = value

    return change


DRAWN = ("metrics", ("dpar", 0), "conditions", "drawn")
LIKELIHOOD, PROBE = ("likelihoods", ("dpar", "step400")), ("probes", ("llamagen", "step400"), "conditions")
FLOOR = ("floor", "conditions")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ((*DRAWN, "threshold"), 3.3, r"seed0\.json measures samples drawn with the threshold \(nats\) 3\.3, .* 3\.21"),
        ((*DRAWN, "sampling", "cfg_interval"), [0.1, 1.0], r"sampling\.cfg_interval \[0\.1, 1\.0\], .* \[0\.0, 1\.0\]"),
        (
            (*DRAWN, "networks", "model"),
            "others",
            r"seed0\.json and likelihood/dpar/step400\.json .*: model others and dp",
        ),
        ((*LIKELIHOOD, "model"), "others", r"linear_probe/dpar/step400\.json and likelihood/dpar/step400\.json"),
        ((*LIKELIHOOD, "step"), 4, r"likelihood/dpar/step400\.json measures the model after training step 4,"),
        ((*PROBE, "model"), "others", r"linear_probe/llamagen/step400\.json and likelihood/llamagen/step400\.json"),
        ((*PROBE, "step"), 4, r"linear_probe/llamagen/step400\.json measures the model after training step 4,"),
        ((*FLOOR, "reference_digest"), "of others", r"noise_floor\.json and .* their `reference_digest` differs"),
        ((*FLOOR, "k"), 5, r"noise_floor\.json and .* their `k` differs"),
        (("floor", "metric"), "FID", r"noise_floor\.json and .* their `metric` differs"),
    ],
)
def test_one_field_that_does_not_fit_is_refused_and_one_that_lacks_passes(place, value, said):
    experiment = experiment_with()
    found = stated(experiment)
    lacking = deepcopy(found)
    change_of(place, value)(found)
    with pytest.raises(InputError, match=said):
        agreed(experiment, found)
    if place[-1] != "cfg_interval":  # which is not there where it is the default
        change_of(place, None)(lacking)
        agreed(experiment, lacking)


def test_an_uncalibrated_threshold_is_not_compared():
    experiment = experiment_with()
    agreed(experiment, stated(experiment) | {"thresholds": {"p_avg": {"1.8": {"threshold": math.nan}}}})


@pytest.mark.parametrize("is_dpar", [True, False])
def test_samples_without_the_patches_of_their_model_are_refused(is_dpar):
    experiment = experiment_with()
    found = stated(experiment)
    of, other = ("dpar", "llamagen") if is_dpar else ("llamagen", "dpar")
    mine, theirs = (found["metrics"][name, 0]["conditions"]["drawn"] for name in (of, other))
    mine["patchify"] = theirs["patchify"]
    words = "without patches, its row asks for with" if is_dpar else "with patches, its row asks for without"
    with pytest.raises(InputError, match=rf"metrics/{of}/seed0\.json measures samples drawn .* {words} patches"):
        agreed(experiment, found)


@pytest.mark.parametrize("is_dpar", [True, False])
def test_exchanged_likelihoods_are_refused(is_dpar):
    expect_patches({"mean_patch_length": 1.8 if is_dpar else None}, "m/step4", is_dpar=is_dpar)
    with pytest.raises(InputError, match=r"the likelihood of m/step4 was measured with .*: two files were exchanged"):
        expect_patches({"mean_patch_length": None if is_dpar else 1.8}, "m/step4", is_dpar=is_dpar)
