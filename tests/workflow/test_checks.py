"""What is refused before the first job: every check has an experiment that fails it, and one that just passes."""

from copy import deepcopy

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpar.errors import InputError
from dpar.experiment.cells import sample_cells
from dpar.experiment.loading import load_experiment, parse_experiment
from dpar.experiment.smoke import composed
from dpar.files import sha256_file, write_text
from dpar.patches.counts import simulate
from dpar.sampling.request import request
from dpar.workflow.checks import located, longest_mean, look, refuse
from dpar.workflow.user_paths import user_paths
from tests.experiment.test_settings import CONFIG, SHIPPED, demo

NETWORK = {"architecture": "llamagen", "width": 96, "heads": 3, "layers": 4, "dropout": 0.0}
GATE = {"model": {**NETWORK, "layers": 1}, "training": {"steps": 1, "batch_size": 32}}


def table(*rows, **vary):
    return {"tables": {"t": {"title": "t", "rows": list(rows), "vary": vary}}}


def picture(*classes):
    return {"figures": {"f": {"title": "f", "rows": [{"model": "dpar"}], "classes": list(classes)}}}


def problems(directory=None, to_make=(), **changes):
    experiment = parse_experiment(demo(**changes), "test")
    return look(experiment, directory, to_make).problems if directory else look(experiment, to_make=to_make).problems


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_experiment_passes_without_its_data(name):
    assert refuse(load_experiment(CONFIG / f"{name}.yaml"), to_make=()) == []


PLAIN = table({"model": "dpar"})
GATED = table({"model": "dpar"}, **{"inference.gate": ["g", "h"]})
THIRDS = {"sampling.cfg_scale": 1 / 3, "sampling.temperature": 1 / 3, "transformer.dropout": 1 / 3}

CASES = [
    # changes that are refused, the same a little less, and what is named
    ({"sampling__num_images": 32}, {"sampling__num_images": 33}, "sampling.num_images: found 32; expected at least 33"),
    ({"evaluation__splits": 161}, {"evaluation__splits": 160}, "sampling.num_images: found 320; expected at least 322"),
    ({"evaluation__k": 320}, {"evaluation__k": 319}, "precision and recall reach to neighbour 320"),
    (
        table({"model": "dpar"}, {"model": "dpar", "sampling.num_images": 10}),
        table({"model": "dpar"}, {"model": "dpar", "sampling.num_images": 40}),
        "tables.t, row {'model': 'dpar', 'sampling.num_images': 10}: sampling.num_images: found 10",
    ),
    ({"evaluation__classifier__dims": 320}, {"evaluation__classifier__dims": 319}, "the 320 dimensions of the"),
    ({"evaluation__reference_images": 65}, {"evaluation__reference_images": 66}, "two halves of 33 for the"),
    ({"evaluation__reference_images": 801}, {"evaluation__reference_images": 800}, "the half that the classifier"),
    (
        {"evaluation__reference": "val", "images__generated": {"train": 1600, "val": 65}},
        {"evaluation__reference": "val", "images__generated": {"train": 1600, "val": 66}},
        "evaluation.reference: found 65 images",
    ),
    ({"patchify__p_avg": 3.77}, {"patchify__p_avg": 3.76}, "patchify.p_avg: found 3.77 on a grid of 8 x 8"),
    (
        table({"model": "dpar", "inference.p_avg": 3.77}),
        table({"model": "dpar", "inference.p_avg": 3.76}),
        "tables.t, row {'model': 'dpar', 'inference.p_avg': 3.77}: inference.p_avg",
    ),
    (
        table({"model": "dpar", "patchify.strategy": "static", "patchify.p_avg": 65}),
        table({"model": "dpar", "patchify.strategy": "static", "patchify.p_avg": 64}),
        "expected 1 to 64, the tokens of an image",
    ),
    ({"codes__train_shards": 1601}, {"codes__train_shards": 1600}, "codes.train_shards: found 1601; expected at most"),
    ({"codes__val_shards": 641}, {"codes__val_shards": 640}, "codes.val_shards"),
    ({"sampling__shards": 321}, {"sampling__shards": 320}, "sampling.shards"),
    ({"training__batch_size": 1601}, {"training__batch_size": 1600}, "entropy_model.training.batch_size: found 1601"),
    ({"tokenizer__training__batch_size": 1601}, {"tokenizer__training__batch_size": 1600}, "tokenizer.training.batch"),
    ({"sampling__top_k": 257}, {"sampling__top_k": 256}, "sampling.top_k: found 257"),
    (
        table({"model": "dpar"}, {"model": "dpar", "sampling.cfg_scale": 2.0}),
        table({"model": "dpar"}, {"model": "dpar", "sampling.cfg_scale": 2.1}),
        "tables.t: found 2 rows of the one cell dpar:",
    ),
    (
        table({"model": "dpar"}, **{"patchify.p_avg": [1.4, 1.4]}),
        table({"model": "dpar"}, **{"patchify.p_avg": [1.4, 1.5]}),
        "2 rows of the one cell dpar_pavg1.4",
    ),
    (
        table({"model": "dpar"}, **{"patchify.p_avg": []}),
        table({"model": "dpar"}, **{"patchify.p_avg": [1.4]}),
        "tables.t.vary.patchify.p_avg: found no values",
    ),
    (
        table({"model": "dpar", "patchify.p_avg": 1.6}, **{"patchify.p_avg": [1.4, 1.5]}),
        table({"model": "dpar", "patchify.max_length": 2}, **{"patchify.p_avg": [1.4, 1.5]}),
        "with a value of its own, which is never used",
    ),
    (table({"model": "dparr"}), table({"model": "dpar"}), "there is no model 'dparr'; did you mean dpar?; models are"),
    (
        table({"model": "dpar", "patchify.max_len": 2}),
        table({"model": "dpar", "patchify.max_length": 2}),
        "max_len: there is no such setting, found 2; did you mean max_length?",
    ),
    (
        {"gates": {"g": GATE}, **table({"model": "dpar"})},
        {"gates": {"g": GATE}, **table({"model": "dpar", "inference.gate": "g"})},
        "gates.g: found a gate that no row",
    ),
    (
        {"gates": {"g": GATE, "h": GATE}, **GATED},
        {"gates": {"g": GATE, "h": {**GATE, "kind": "distilled"}}, **GATED},
        "gates.h: found the settings of g under another name",
    ),
    (
        {"gates": {"g.json": GATE}, **table({"model": "dpar", "inference.gate": "g.json"})},
        {"gates": {"json": GATE}, **table({"model": "dpar", "inference.gate": "json"})},
        "gates.g.json: found the name of a file",
    ),
    (
        {"models__twin": NETWORK, "models__llamagen": NETWORK},
        {"models__twin": {**NETWORK, "layers": 3}, "models__llamagen": NETWORK},
        "models.twin: found the settings of llamagen under another name",
    ),
    (
        {"tables": {"train_model": {"title": "t", "rows": [{"model": "dpar"}]}}},
        {"tables": {"train_models": {"title": "t", "rows": [{"model": "dpar"}]}}},
        "tables.train_model: found the name of a rule",
    ),
    (
        {"models": {"m" * 100: NETWORK}, **table({"model": "m" * 100, "sampling.top_p": 1 / 3, **THIRDS})},
        {"models": {"m" * 100: NETWORK}, **table({"model": "m" * 100, **THIRDS})},
        "expected at most 200",
    ),
    ({"images__num_classes": 9}, {"images__num_classes": 8}, "images.num_classes: found 9"),
    (
        {"images__generated": {"train": 7, "val": 640}},
        {"images__generated": {"train": 1600, "val": 640}},
        "images.generated.train: found 7; expected at least one of each of the 8 classes",
    ),
    ({"evaluation__resolution": 65}, {"evaluation__resolution": 64}, "evaluation.resolution: found 65"),
    ({"evaluation__resolution": 7}, {"evaluation__resolution": 8}, "evaluation.resolution: found 7; expected at least"),
    (
        {"images__resolution": 16, "patchify__p_avg": 1.1, "tokenizer__training__adversarial_weight": 1, **PLAIN},
        {"images__resolution": 24, "patchify__p_avg": 1.1, "tokenizer__training__adversarial_weight": 1, **PLAIN},
        "images.resolution: found 16; expected at least 24 pixels",
    ),
    (
        {"sampling__num_images": 64, "sampling__batch_size": 4, "sampling__shards": 16, **picture(3, 4)},
        {"sampling__num_images": 64, "sampling__batch_size": 4, "sampling__shards": 16, **picture(2, 3)},
        "figures.f.classes: found [4]; expected classes below 4",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("refused", "passed", "named"), CASES, ids=[named[:40] for _, _, named in CASES])
def test_what_is_refused_and_what_just_passes(refused, passed, named):
    found = problems(**refused)
    assert any(named in str(problem) for problem in found), list(map(str, found))
    assert list(map(str, problems(**passed))) == []


def test_all_problems_are_listed_at_once_a_line_each_with_the_next_step():
    changes = {
        "sampling__num_images": 3,
        "codes__val_shards": 700,
        "sampling__top_k": 1000,
        **table({"model": "x"}, {"model": "dpar"}),
    }
    with pytest.raises(InputError, match="experiment demo cannot be run") as error:
        refuse(parse_experiment(demo(**changes), "test"), to_make=())
    first, *lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "tables.t",
        "sampling.num_images",
        "sampling.top_k",
        "codes.val_shards",
    ]
    assert all("; expected " in line and line.count("; ") >= 2 for line in lines)
    assert "nothing was started" in first


@pytest.mark.parametrize("max_length", [1, 3, 4, None])
@pytest.mark.parametrize("rows", [True, False])
def test_the_longest_mean_is_what_no_entropy_gives(max_length, rows):
    silent = np.zeros((1, 63), np.float32)
    cells = simulate(silent, thresholds=[np.inf], max_lengths=[max_length], grid_width=9, row_boundary=rows)
    assert longest_mean(63, 9, max_length, rows) == cells[np.inf, max_length].mean_patch_length


def test_classes_of_a_picture_are_those_of_the_first_shard():
    drawn = request(num_images=64, num_classes=8, labels="balanced", seed=0, batch_size=4, shards=16).labels
    assert set(drawn.tolist()) == {0, 1, 2, 3}


FILES = {"train": "train*.parquet", "val": "val.parquet"}
USER = {
    "images": {"source": "parquet", **FILES, "resolution": 64, "num_classes": 8},
    "evaluation": {"extractor": "net.pt", "reference": "reference.npz"},
    "entropy_model": {"kind": "null_class", "weights": "c2i.pt", "model": NETWORK},
}  # fmt: skip


def user(**changes):
    """An experiment whose every path is the user's."""
    tokenizer = {k: v for k, v in demo()["tokenizer"].items() if k != "training"} | {"weights": "vq.pt"}
    values = demo(**deepcopy(USER), tokenizer=tokenizer)
    for path, value in changes.items():
        group, key = path.split("__")
        values[group][key] = value
    return parse_experiment(values, "test")


@pytest.fixture
def data(tmp_path):
    """A folder with all that `user` names."""
    for name, rows in {"train0": 30, "train1": 20, "val": 10}.items():
        pq.write_table(pa.table({"key": [str(i) for i in range(rows)]}), tmp_path / f"{name}.parquet")
    for name in ("net.pt", "vq.pt", "c2i.pt"):
        (tmp_path / name).write_bytes(b"PK\3\4weights")
    np.savez(tmp_path / "reference.npz", arr_0=np.zeros((8, 64, 64, 3), np.uint8))
    return tmp_path


def test_what_is_there_passes_and_the_rest_is_named(data):
    experiment = user(training__batch_size=16)
    assert [str(problem) for problem in look(experiment, data).problems] == []
    (data / "vq.pt").write_bytes(b"")
    (data / "net.pt").unlink()
    (data / "c2i.pt").unlink()
    (data / "c2i.pt").mkdir()
    (data / "val.parquet").write_bytes(b"")
    (data / "reference.npz").unlink()
    found = {problem.key: problem.found for problem in look(experiment, data).problems}
    assert found == {
        "images.val": f"'val.parquet', of which {data / 'val.parquet'} is empty",
        "tokenizer.weights": "'vq.pt', which is empty",
        "entropy_model.weights": "'c2i.pt', which is a folder",
        "evaluation.extractor": "'net.pt', which does not exist",
        "evaluation.reference": "'reference.npz', which does not exist",
    }


def test_no_file_is_looked_at_where_nothing_is_made_and_none_where_what_it_makes_is_there(tmp_path):
    experiment = user(training__batch_size=16)
    assert look(experiment, tmp_path, ()).problems == []
    assert {
        problem.key for problem in look(experiment, tmp_path, ["results/demo/tokenizer/model.safetensors"]).problems
    } == {"tokenizer.weights"}
    for path in user_paths(experiment, sample_cells(experiment).values()):
        assert path.key in {problem.key for problem in look(experiment, tmp_path).problems}
        for output in path.outputs:
            write_text(tmp_path / "results" / "demo" / output, "made")
    assert look(experiment, tmp_path).problems == []


def test_counts_are_taken_from_parquet_and_from_the_index_of_an_earlier_run(data):
    found = [str(problem) for problem in look(user(training__batch_size=51, codes__val_shards=11), data).problems]
    assert (
        found
        == [
            "codes.val_shards: found 11; expected at most the 10 val images; lower it, or add images",
            "training.batch_size: found 51; expected at most the 50 train images; lower it, or add images",
        ][::-1]
    )
    write_text(
        data / "results" / "demo" / "index" / "train.json", '{\n"count": 7,\n"class_counts": [4, 3],\n"keys": []\n}\n'
    )
    (line,) = map(str, look(user(training__batch_size=8), data).problems)
    assert "expected at most the 7 train images" in line


def test_images_whose_number_is_not_known_are_said(tmp_path):
    experiment = user(training__batch_size=16, images__source="webdataset", images__train="a.tar", images__val="b.tar")
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(name.encode())
    findings = look(experiment, tmp_path, ["results/demo/index/train.json"])
    assert findings.problems == []
    assert len(findings.unknown) == 1
    assert "the number of train images of a.tar" in findings.unknown[0]


FOLDERS = {"images__source": "folder", "images__train": "train", "images__val": "val", "training__batch_size": 4}


def folders(data, **classes):
    """Training and held-out images in folders: CLASS=(images for training, images held out)."""
    number = 0
    for split in (0, 1):
        for name, counts in classes.items():
            for i in range(counts[split]):
                number += 1
                path = data / ("train", "val")[split] / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"image {number:05d}".encode())


def test_folders_are_counted_before_they_are_indexed(data):
    folders(data, a=(20, 6), b=(20, 6))
    several = user(**{**FOLDERS, "training__batch_size": 41}, images__num_classes=2, codes__val_shards=13)
    found = {problem.key: problem.found for problem in look(several, data).problems}
    assert found == {"training.batch_size": "41", "codes.val_shards": "13"}
    (data / "train" / "c").mkdir()
    assert "class folder" in {p.key: p.found for p in look(user(**FOLDERS), data).problems}["images.train"]


def test_images_that_both_splits_have_are_counted_and_named(data):
    folders(data, a=(20, 6), b=(20, 6))
    experiment = user(**FOLDERS, images__num_classes=2)
    assert look(experiment, data).problems == []
    for name in ("a", "b"):
        (data / "val" / name / "copy.png").write_bytes((data / "train" / name / "3.png").read_bytes())
    (problem,) = look(experiment, data).problems
    assert problem.key == "images.val"
    assert "2 of 14 held-out images that are training images too, byte for byte: a/copy.png = a/3.png" in problem.found
    assert "images.allow_shared: true" in problem.remedy
    assert look(user(**FOLDERS, images__num_classes=2, images__allow_shared=True), data).problems == []


def test_copies_across_a_held_out_share_and_copied_files_are_found_too(data):
    folders(data, a=(20, 0), b=(20, 0))
    values = {**FOLDERS, "images__val": None, "images__held_out": 0.3}
    assert look(user(**values, images__num_classes=2), data).problems == []
    for i in range(20):
        (data / "train" / "a" / f"copy{i}.png").write_bytes((data / "train" / "a" / f"{i}.png").read_bytes())
    (problem,) = look(user(**values, images__num_classes=2), data).problems
    assert "training images too" in problem.found
    (data / "copied.parquet").write_bytes((data / "train0.parquet").read_bytes())
    (problem,) = look(user(images__val="copied.parquet", training__batch_size=16), data).problems
    assert "1 of 1 files of held-out images that are training images too" in problem.found


def test_classes_of_both_splits_are_compared_by_name(data):
    folders(data, daisy=(20, 6), rose=(20, 0), Rose=(0, 6))
    (problem,) = look(user(**FOLDERS, images__num_classes=2), data).problems
    assert problem.key == "images.val"
    assert "Rose is not rose" in problem.found
    (problem,) = [p for p in look(user(**FOLDERS, images__num_classes=3), data).problems if "num" in p.key]
    assert str(problem).startswith("images.num_classes: found 3, but images.train has 2 folders")


@pytest.mark.parametrize(
    ("data_of_file", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"weights", "does not begin as such a file does"),
    ],
)
def test_a_file_of_another_kind_is_named(data, data_of_file, found):
    (data / "vq.pt").write_bytes(data_of_file)
    (problem,) = look(user(training__batch_size=16), data).problems
    assert problem.key == "tokenizer.weights"
    assert found in problem.found


def test_a_digest_that_another_file_has_is_named(data):
    wrong, right = "0" * 64, sha256_file(data / "vq.pt")
    (problem,) = look(user(training__batch_size=16, tokenizer__weights_sha256=wrong), data).problems
    assert (problem.key, problem.found) == ("tokenizer.weights", f"the SHA-256 {right}")
    assert look(user(training__batch_size=16, tokenizer__weights_sha256=right), data).problems == []


def test_a_reference_of_another_size_or_with_too_few_images_is_named(data):
    np.savez(data / "reference.npz", arr_0=np.zeros((7, 32, 32, 3), np.uint8))
    found = [str(problem) for problem in look(user(training__batch_size=16), data).problems]
    assert [line.partition(";")[0] for line in found] == [
        "evaluation.reference: found images of 32 pixels",
        "evaluation.reference: found 7 images in reference.npz",
    ]


@pytest.mark.parametrize("path", ["a\0b", "a" * 300, "\udcff/x", ""])
def test_a_path_that_no_file_can_have_is_named(data, path):
    experiment = user(training__batch_size=16)
    tokenizer = experiment.tokenizer.model_copy(update={"weights": path})
    (problem,) = look(experiment.model_copy(update={"tokenizer": tokenizer}), data).problems
    assert problem.key == "tokenizer.weights"


def test_splits_that_are_the_same_images_are_refused_before_anything_starts(data):
    (data / "again.parquet").symlink_to(data / "train0.parquet")
    for path in ("train0.parquet", "./train0.parquet", "again.parquet"):
        problems = look(user(images__train="train0.parquet", images__val=path), data).problems
        assert [problem.found for problem in problems if problem.key == "images.val"] == [f"{path}, as images.train"]


def test_more_class_folders_than_classes_are_refused_before_anything_starts(data):
    for name in ("a", "b", "c"):
        for split in ("train", "val"):
            (data / split / name).mkdir(parents=True)
            (data / split / name / "x.png").touch()
    (data / "train" / "empty").mkdir()
    (data / "train" / ".hidden").mkdir()

    def found(classes):
        folders = {"images__source": "folder", "images__train": "train", "images__val": "val"}
        problems = look(user(images__num_classes=classes, **folders), data).problems
        return [problem.found for problem in problems if problem.key == "images.num_classes"]

    assert found(3) == []
    assert found(2) == [f"2, but images.{split} has 3 folders, one per class" for split in ("train", "val")]


def test_a_row_is_refused_where_the_refused_setting_is_written():
    change = "tables.comparison.base.sampling.top_k=-1"
    experiment, places = composed([CONFIG / "demo.yaml"], [change])
    refused = [located(problem, places) for problem in look(experiment, to_make=()).problems]
    assert refused
    assert all(line.startswith(f"--set {change}: tables.comparison: found row") for line in refused)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        (["evaluation.splits=1000"], "--set evaluation.splits=1000"),
        (["evaluation.splits=1000", "sampling.num_images=1999"], "--set sampling.num_images=1999"),
        (["sampling.num_images=1999", "evaluation.splits=1000"], "--set evaluation.splits=1000"),
        (["evaluation.k=4", "evaluation.splits=1000"], "--set evaluation.splits=1000"),
        (["sampling.num_images=12"], "--set sampling.num_images=12"),
    ],
)
def test_of_two_settings_that_do_not_fit_the_one_that_was_said_last_is_named(changes, place):
    experiment, places = composed([CONFIG / "demo.yaml"], changes)
    problems = [problem for problem in look(experiment, to_make=()).problems if problem.key == "sampling.num_images"]
    assert [located(problem, places).partition(": ")[0] for problem in problems] == [place]
