"""`config/schema.json` is what the settings say, and what editors are told of every shipped experiment."""

import json

import pytest
from jsonschema import Draft202012Validator

from dpar.commands.schema import main
from dpar.experiment.reading import read_yaml
from tests.experiment.test_settings import CONFIG, SHIPPED

SCHEMA = CONFIG / "schema.json"


def test_the_schema_is_current(capsys):
    main([])
    assert capsys.readouterr().out == SCHEMA.read_text(), "make it again: `dpar schema > config/schema.json`"


def test_the_schema_says_what_each_setting_means():
    schema = json.loads(SCHEMA.read_text())
    groups = {"Experiment": schema} | schema["$defs"]
    settings = {
        f"{group}.{key}": field for group in groups for key, field in groups[group].get("properties", {}).items()
    }
    assert len(settings) > 100
    assert [name for name, field in settings.items() if not field.get("description")] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_experiments_name_the_schema_and_obey_it(name):
    path = CONFIG / f"{name}.yaml"
    assert path.read_text().splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA.name}"
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(read_yaml(path))


@pytest.mark.parametrize("change", [{"nmae": "demo"}, {"name": "a b"}, {"seed": -1}, {"images": {"source": "film"}}])
def test_what_an_experiment_may_not_say_the_schema_refuses(change):
    schema = Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert not schema.is_valid({**read_yaml(CONFIG / "demo.yaml"), **change})
