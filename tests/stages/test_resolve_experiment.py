"""The stage that writes the experiment for all others."""

import json

import pytest

from dpar.config import load_experiment, parse_experiment
from dpar.errors import InputError
from dpar.stages import resolve_experiment
from tests.test_config import demo


def test_the_experiment_is_written_with_every_default(tmp_path):
    output = tmp_path / "experiment.json"
    resolve_experiment.main(["--values", json.dumps(demo()), "--output", str(output)])
    assert load_experiment(output) == parse_experiment(demo(), "test")
    assert json.loads(output.read_text())["training"]["weight_decay"] == 0.05


@pytest.mark.parametrize("values", ["{", json.dumps(demo(seeed=1))])
def test_what_is_no_experiment_leaves_nothing(tmp_path, values):
    with pytest.raises(InputError):
        resolve_experiment.main(["--values", values, "--output", str(tmp_path / "experiment.json")])
    assert not list(tmp_path.iterdir())
