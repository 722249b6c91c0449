"""`dpar check`: each mistake is one line with key, line, value, what is allowed and the next step, in seconds."""

import socket

import pytest
import yaml

from dpar.commands import check
from dpar.errors import InputError
from dpar.workflow import room, slurm
from tests.data.samples import folder_of_images, image_bytes, sample_image
from tests.experiment.test_settings import demo

SMALL = {
    "training__batch_size": 8,
    "codes__train_shards": 1,
    "tokenizer__training__batch_size": 8,
    "evaluation__classifier": {"channels": 8, "dims": 8, "steps": 2, "batch_size": 8},
    "evaluation__splits": 2,
}


@pytest.fixture
def photos(tmp_path):
    """Training and held-out images of three classes."""
    folder_of_images(tmp_path / "train", each=20)
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(4):
            data = image_bytes(sample_image(10_000 + 100 * label + i))
            (tmp_path / "val" / name / f"{i}.png").write_bytes(data)
    return tmp_path


def said(photos, *flags, **changes):
    """The lines that the command says of an experiment on the photos; none if it says that nothing is wrong."""
    images = {"source": "folder", "train": "train", "val": "val", "resolution": 64, "num_classes": 3}
    values = demo(images=images)
    values["entropy_model"]["training"] = {**values["training"]}
    for path, value in (SMALL | changes).items():
        *groups, key = path.split("__")
        place = values
        for group in groups:
            place = place[group]
        place[key] = value
    values["entropy_model"]["training"]["batch_size"] = 8
    (photos / "own.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    try:
        check.main(["--config", str(photos / "own.yaml"), "--directory", str(photos), *flags])
    except InputError as error:
        return str(error).splitlines()[1:]
    return []


def test_a_list_of_names_in_another_order_than_the_folders_is_said_before_anything_starts(photos):
    (photos / "names.txt").write_text("Cat\nBee\nAnt\n")
    (line,) = said(photos, images__classes="names.txt")
    assert "images.classes" in line
    assert "calls ant Cat, as if it were cat" in line
    (photos / "names.txt").write_text('{"cat": "Cat", "bee": "Bee", "ant": "Ant"}')
    assert said(photos, images__classes="names.txt") == []


def test_what_is_in_order_is_said_to_be(photos, capsys):
    assert said(photos) == []
    assert "demo: nothing is wrong with it (60 images train, 12 images val)" in capsys.readouterr().out
    assert said(photos, "--deep") == []


def copied(photos):
    (photos / "val" / "ant" / "copy.png").write_bytes((photos / "train" / "ant" / "0.png").read_bytes())


def renamed(photos):
    (photos / "val" / "ant").rename(photos / "val" / "wasp")


def page(photos):
    (photos / "vq.pt").write_bytes(b"<html>not found</html>")


MISTAKES = {
    "path": (None, {"images__val": "none"}, "images.val: found 'none', which does not exist"),
    "classes": (renamed, {}, "images.val: found val holds 1 classes that the training images lack: wasp"),
    "shared": (copied, {}, "images.val: found 1 of 13 held-out images that are training images too"),
    "p_avg": (None, {"patchify__p_avg": 7.5}, "patchify.p_avg: found 7.5 on a grid of 8 x 8; expected 1 to 3.765"),
    "shards": (None, {"codes__val_shards": 13}, "codes.val_shards: found 13; expected at most the 12 val images"),
    "batches": (None, {"training__batch_size": 61}, "training.batch_size: found 61; expected at most the 60 train"),
    "samples": (None, {"sampling__num_images": 8}, "sampling.num_images: found 8; expected at least 9: the Frechet"),
    "rows": (
        None,
        {"tables": {"t": {"title": "t", "rows": [{"model": "dpar"}, {"model": "dpar"}]}}},
        "tables.t: found 2 rows of the one cell dpar",
    ),
    "weights": (page, {"tokenizer__training": None, "tokenizer__weights": "vq.pt"}, "tokenizer.weights: found 'vq.pt'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line_with_its_place_and_the_next_step(photos, monkeypatch, mistake):
    monkeypatch.chdir(photos)
    make, changes, expected = MISTAKES[mistake]
    if make:
        make(photos)
    lines = said(photos, **changes)
    assert len(lines) == 1, lines
    place, _, problem = lines[0].strip().partition(": ")
    file, _, line = place.rpartition(":")
    assert file == str(photos / "own.yaml")
    written = (photos / "own.yaml").read_text().splitlines()[int(line) - 1].strip()
    assert written.split(":")[0] in expected.split(":")[0] or (mistake == "rows" and written.startswith("- model"))
    assert problem.replace(f"{photos}/", "").startswith(expected), problem
    assert problem.count("; expected ") == 1
    assert problem.split("; expected ")[1].count("; ") >= 1, "and the next step"


def test_memory_disk_partitions_and_ports_are_looked_at(photos, monkeypatch, capsys):
    monkeypatch.setattr(room, "memory_here", lambda: (1e6, "this machine"))
    (lines := said(photos)).sort()
    assert {line.split(": ")[1] for line in lines} == {"models.dpar", "models.llamagen", "entropy_model"}
    monkeypatch.setattr(check, "longest_jobs", lambda: {"short": 60.0})
    lines = said(photos, "--slurm")
    assert [line.split(": found ")[0].split(": ")[-1] for line in lines] == ["DPAR_CPU_PARTITION", "DPAR_GPU_PARTITION"]
    monkeypatch.setenv("DPAR_CPU_PARTITION", "short")
    monkeypatch.setenv("DPAR_GPU_PARTITION", "short")
    assert said(photos, "--slurm") == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(check, "PORT", taken.getsockname()[1])
        said(photos, "--slurm")
    assert "is in use: open the dashboard with" in capsys.readouterr().out


def test_without_slurm_its_partitions_are_an_error(photos, monkeypatch):
    monkeypatch.setattr(slurm, "_ask", lambda *_: (_ for _ in ()).throw(InputError("there is no Slurm here")))
    with pytest.raises(InputError, match="no Slurm here"):
        check.partitions().__next__()


def test_deep_reads_every_image_and_shard(photos):
    (photos / "train" / "bee" / "3.png").write_bytes(b"cut off")
    assert said(photos) == []
    (line,) = said(photos, "--deep")
    assert "images.train: found 1 of 60 images" in line
    assert "bee/3.png" in line
