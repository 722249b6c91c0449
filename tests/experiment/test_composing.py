"""Experiments that extend others and change single settings: what they come to, and where each setting is written."""

import subprocess
import sys

import pytest
import yaml

from dpar.errors import InputError
from dpar.experiment.composing import compose, merged
from dpar.experiment.loading import compose_experiment, load_experiment
from dpar.files import write_json
from tests.experiment.test_settings import CONFIG, demo

OWN = """\
extends: {base}
name: own
images: {{source: generated, generated: {{train: 1600, val: 640}}, resolution: 64, num_classes: 8}}
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("base", ["tiny", "small", "base", "paper"])
def test_each_shipped_base_lacks_a_name_and_images_alone(tmp_path, base):
    own = write(tmp_path / "own.yaml", OWN.format(base=f"config/base/{base}.yaml"))
    assert load_experiment(own).name == "own"
    with pytest.raises(InputError) as error:
        load_experiment(CONFIG / "base" / f"{base}.yaml")
    assert {line.split(": ")[1] for line in str(error.value).splitlines()[1:]} == {"name", "images"}


def test_what_is_extended_is_byte_for_byte_what_is_written_out(tmp_path):
    own = write(tmp_path / "own.yaml", OWN.format(base=CONFIG / "demo.yaml") + "sampling: {cfg_scale: 2.5}\n")
    out = write(tmp_path / "out.yaml", yaml.safe_dump(demo(name="own", sampling__cfg_scale=2.5), sort_keys=False))
    for path in (own, out):
        write_json(path.with_suffix(".json"), load_experiment(path).model_dump(mode="json"))
    assert own.with_suffix(".json").read_bytes() == out.with_suffix(".json").read_bytes()


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {}),
        ({"max_length": 4}, {"max_length": None}, {"max_length": None}),
        ({"t": {"steps": 5, "batch_size": 2}}, {"t": {"epochs": 3}}, {"t": {"batch_size": 2, "epochs": 3}}),
        ({"threshold": 7.8}, {"p_avg": 1.8}, {"p_avg": 1.8}),
        ({"training": {"steps": 5}}, {"weights": "a.pt"}, {"weights": "a.pt"}),
        ({"weights": "a.pt"}, {"training": {"steps": 5}}, {"training": {"steps": 5}}),
        ({"width": 96, "dropout": 0.0}, {"variant": "DPAR-B"}, {"dropout": 0.0, "variant": "DPAR-B"}),
        ({"variant": "DPAR-B"}, {"width": 96}, {"variant": "DPAR-B", "width": 96}),
    ],
)
def test_groups_are_merged_and_of_two_ways_to_say_one_thing_the_last_counts(below, above, expected):
    assert merged(below, above) == expected


def test_the_name_of_results_is_not_inherited(tmp_path):
    own = write(tmp_path / "own.yaml", "extends: config/demo.yaml\n")
    with pytest.raises(InputError, match="name: missing"):
        load_experiment(own)


def test_circles_and_missing_files_are_named_with_their_line(tmp_path):
    a = write(tmp_path / "a.yaml", "name: a\nextends: sub/b.yaml\n")
    b = write(tmp_path / "sub/b.yaml", "extends: ../a.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml extends .*b\.yaml extends .*a\.yaml: a circle"):
        load_experiment(a)
    b.write_text("seed: 0\nextends: config/base/tinny.yaml\n")
    with pytest.raises(InputError, match=r"b\.yaml:2: extends: .*did you mean config/base/tiny\.yaml\?"):
        load_experiment(a)
    a.write_text("extends: [a, b]")
    with pytest.raises(InputError, match=r"a\.yaml:1: extends: found \['a', 'b'\]; expected one file"):
        load_experiment(a)


def test_unknown_keys_are_named_with_the_file_and_line_that_says_them(tmp_path):
    base = write(tmp_path / "below.yaml", "extends: config/base/tiny.yaml\nsampling:\n  cfg_scal: 3\n")
    own = write(tmp_path / "own.yaml", OWN.format(base="below.yaml") + "trainin: {}\nseed: x\n")
    with pytest.raises(InputError) as error:
        compose_experiment([own], ["images.num_clases=4"])
    said = str(error.value).splitlines()[1:]
    assert f"  {base}:3: sampling.cfg_scal: there is no such setting, found 3; did you mean cfg_scale?" in said
    assert f"  {own}:4: trainin: there is no such setting; did you mean training?" in said
    assert f"  {own}:5: seed: expected a whole number, found 'x'" in said
    assert any(line.startswith("  --set images.num_clases=4: images.num_clases: there is no such") for line in said)
    assert "pydantic" not in str(error.value)


def test_a_row_is_found_in_its_file(tmp_path):
    own = write(tmp_path / "own.yaml", "a: 1\ntables:\n  t:\n    rows:\n      - {model: x}\n      - {model: y}\n")
    _, places = compose([own])
    assert places.of(("tables", "t", "rows", 1)) == f"{own}:6"
    assert places.of_key("tables.t, row {'model': 'y'}: sampling.top_k") == f"{own}:6"
    assert places.of_key("tables.t, row {'model': 'z'}: sampling.top_k") == f"{own}:3", "of the table, if it is none"
    assert places.of_key("tables.t, row {'model': 'x', 'inference.threshold': inf}") == f"{own}:3"
    assert places.of_key("evaluation.k") == f"{own}:1"


def test_a_setting_of_a_row_is_found_where_it_is_written(tmp_path):
    text = "tables:\n  t:\n    base:\n      a.b: 1\n    vary:\n      c.d: [1, 2]\n    rows:\n"
    text += "      - model: x\n      - model: x\n        e.f: 3\nfigures:\n  g:\n    rows:\n      - {model: x}\n"
    own = write(tmp_path / "own.yaml", text)
    _, places = compose([own])
    plain, more = "{'a.b': 1, 'model': 'x', 'c.d': 2}", "{'a.b': 1, 'model': 'x', 'e.f': 3, 'c.d': 2}"
    assert places.of_key(f"tables.t, row {plain}") == f"{own}:8"
    assert places.of_key(f"tables.t, row {more}") == f"{own}:9", "the row that says most of it"
    assert places.of_key(f"tables.t, row {more}: e.f") == f"{own}:10"
    assert places.of_key(f"tables.t, row {more}: c.d") == f"{own}:6"
    assert places.of_key(f"tables.t, row {more}: a.b") == f"{own}:4"
    assert places.of_key("figures.g, row {'model': 'x'}: model") == f"{own}:14"
    below = write(tmp_path / "below.yaml", f"extends: {own}\nseed: 1\n")
    assert compose([below])[1].of_key(f"tables.t, row {plain}") == f"{own}:8"


def test_what_a_change_replaces_is_not_looked_for_below_it(tmp_path):
    """A list is replaced as a whole, so that a file that has more of one says nothing of it any more."""
    own = write(tmp_path / "own.yaml", "a: [1, 2]\ntables:\n  t:\n    rows:\n      - {model: x}\n      - {model: y}\n")
    rows = "tables.t.rows=[{model: x}, {model: z}]"
    _, places = compose([own], ["a=[1, x]", rows])
    assert places.of(("a", 1)) == "--set a=[1, x]"
    assert places.of(("tables", "t", "rows", 1, "model")) == f"--set {rows}"
    assert places.of_key("tables.t, row {'model': 'z'}: model") == f"--set {rows}"


def test_each_change_of_a_group_may_be_what_is_refused_of_it(tmp_path):
    own = write(tmp_path / "own.yaml", "m: {width: 96, heads: 3}\n")
    _, places = compose([own], ["m.width=97", "m.dropout=0.1"])
    assert places.of(("m",)) == "--set m.width=97, --set m.dropout=0.1"
    assert places.of(("m", "width")) == "--set m.width=97"
    assert places.of(("m", "heads")) == f"{own}:1"


def test_changes_are_yaml_and_reach_into_names_with_dots():
    def changed(*changes, file=CONFIG / "demo.yaml"):
        return compose([file], changes)[0]

    assert changed("sampling.cfg_scale=2.5")["sampling"]["cfg_scale"] == 2.5
    assert changed("sampling.seeds=[0, 1]")["sampling"]["seeds"] == [0, 1]
    assert changed("patchify.max_length=null")["patchify"]["max_length"] is None
    assert changed("training.epochs=3")["training"].keys() >= {"epochs"}
    assert "steps" not in changed("training.epochs=3")["training"]
    tables = changed("tables.threshold_by_length.vary.patchify.p_avg=[1.2]")["tables"]
    assert tables["threshold_by_length"]["vary"]["patchify.p_avg"] == [1.2]
    named = changed("models.dpar-1.5={width: 32}", "models.dpar-1.5.width=64")["models"]
    assert "dpar-1" in named, "a new name ends at its first dot"
    assert changed("sampling.cfg_scale=1", "sampling.cfg_scale=3")["sampling"]["cfg_scale"] == 3


@pytest.mark.parametrize("change", ["sampling.cfg_scale", "=3", "a=[1", "tables.comparison.rows.model=dpar"])
def test_a_change_that_is_none_is_one_line(change):
    with pytest.raises(InputError, match="--set ") as error:
        compose([CONFIG / "demo.yaml"], [change])
    assert "\n" not in str(error.value)


def test_extended_files_cannot_say_more_than_memory_holds(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    write(tmp_path / "bomb.yaml", "\n".join(lines))
    with pytest.raises(InputError, match="holds more than 100,000 values"):
        load_experiment(write(tmp_path / "own.yaml", OWN.format(base="bomb.yaml")))


def test_loading_an_experiment_imports_no_network():
    code = "import sys, dpar.experiment.loading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
