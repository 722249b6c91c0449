"""Measurements of another shape are refused by name, before a table is made of the rest."""

import pytest

from dpar.errors import InputError
from dpar.files import write_json
from dpar.report.measured import (
    Comparison,
    Counts,
    Floor,
    Likelihood,
    Metrics,
    Probe,
    read_measured,
    read_metrics,
)
from tests.report.made_up import made_up_floor, metrics

PROTOCOL = {"states": "s", "training_images": 1, "training_views": "v", "val_images": 1, "penalty": 0.1}
AGREEMENT = {"share": 1.0, "chance": 0.5, "precision": None, "recall": 1.0}
PLACING = {"model": "m", "milestone": "s", "gate": None, "kind": "k", "parameters": 1, "gate_gmacs": 1.0}
PLACING |= {"sampling_gmacs": 1.0, "threshold": 1.0, "mean_patch_length": 1.0, "steps": 1.0, "correlation": 1.0}
WHOLE = {
    Metrics: metrics(1.0),
    Likelihood: {"nll": 4.0, "mean_patch_length": None},
    Probe: {"top1": 5.0, "conditions": PROTOCOL},
    Floor: made_up_floor(),
    Counts: {"cells": {"dpar": {"parameters": 1, "training_gmacs": 1.5}}},
    Comparison: {"images": 17, "rows": [PLACING | {"agreement": AGREEMENT, "nll": 4.0}]},
}


def fields(value, path=()):
    """The place of every field of `value`, at any depth."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inside:
        yield (*path, key)
        yield from fields(entry, (*path, key))


def changed(value, path, change):
    """`value` with the field at `path` lost, or of another type."""
    key, *rest = path
    copy = value.copy()
    if rest:
        copy[key] = changed(value[key], rest, change)
    elif change == "lost":
        del copy[key]
    else:
        copy[key] = {"of": "another type"}
    return copy


READ_ALONE = {"kid"}  # of the metrics, which tables do not show
MAY_LACK = {"rows", "warnings", "cells"}  # an element of these, not the field


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.__name__)
def test_every_field_that_is_read_is_asked_for(tmp_path, kind):
    path, whole, seen = tmp_path / "found.json", WHOLE[kind], 0
    write_json(path, whole)
    assert read_measured(path, kind) == whole
    for place in fields(whole):
        for change in ("lost", "type"):
            if place[-1] in READ_ALONE or (change == "lost" and len(place) > 1 and place[-2] in MAY_LACK):
                continue
            write_json(path, changed(whole, place, change))
            with pytest.raises(InputError, match=r"found\.json lacks a field, or has another") as refusal:
                read_measured(path, kind)
            assert "errors.pydantic" not in str(refusal.value)
            seen += 1
    assert seen > 2
    for other in ({"a": 1}, [1], 5, None, "x"):
        write_json(path, other)
        with pytest.raises(InputError, match=r"found\.json lacks a field, or has another"):
            read_measured(path, kind)


def test_metrics_of_other_samples_are_refused(tmp_path):
    found = metrics(1.0)
    found["conditions"]["drawn"] = {"cell": "dpar", "seed": 1}
    for cell, name, fits in (("dpar", "seed1", True), ("dpar", "seed0", False), ("llamagen", "seed1", False)):
        path = tmp_path / cell / f"{name}.json"
        write_json(path, found)
        if fits:
            assert read_metrics(path) == found
        else:
            with pytest.raises(InputError, match=f"{name}.json holds the metrics of the samples dpar/seed1"):
                read_metrics(path)
