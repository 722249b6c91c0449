"""`dpar init`: files that run as they are, for many kinds of images."""

import dataclasses

import pytest

from dpar.commands import init
from dpar.data.images import open_images
from dpar.data.subsets import held_out
from dpar.data.survey import Survey, survey
from dpar.errors import InputError
from dpar.experiment.loading import load_experiment
from dpar.workflow.checks import look
from dpar.workflow.sizing import SIZES, choose
from tests.data.samples import folder_of_images, image_bytes, sample_image

PHOTOS = Survey(
    source="folder", train="photos", val=None, images=(60,) * 5, classes=("a", "b", "c", "d", "e"), val_count=0,
    read=300, unreadable=(), sides=(280,) * 300, smallest=(280, 300), largest=(300, 500),
)  # fmt: skip


def written(tmp_path, found, size="tiny"):
    """The experiment that is chosen, as its file says it."""
    path = tmp_path / "own.yaml"
    path.write_text(init.written(choose(found, "own", size), found))
    return load_experiment(path), path.read_text()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("each", [5, 12, 60, 300, 20_000])
@pytest.mark.parametrize("classes", [1, 5, 40])
def test_every_size_of_set_has_an_experiment_that_nothing_is_wrong_with(tmp_path, size, each, classes):
    names = tuple(f"class {i}" for i in range(classes))
    found = dataclasses.replace(PHOTOS, images=(each,) * classes, classes=names)
    if each * classes < 20:
        with pytest.raises(InputError, match="at least 20 are needed"):
            choose(found, "own", size)
        return
    experiment, text = written(tmp_path, found, size)
    assert len(text.splitlines()) <= init.MOST_LINES
    problems = look(experiment, to_make=()).problems
    index = tmp_path / "results" / "own" / "index"
    index.mkdir(parents=True)
    held = min(max(1, round(0.1 * each)), each - 1)
    for split, count in (("train", each - held), ("val", held)):
        (index / f"{split}.json").write_text(f'{{"class_counts": {[count] * classes}}}')
    problems += look(experiment, tmp_path, to_make=("nothing",)).problems
    assert [p for p in problems if "weights" not in p.key] == []


@pytest.mark.parametrize(("side", "resolution"), [(280, 64), (64, 64), (40, 40), (39, 32), (9, 32)])
def test_the_resolution_is_what_nine_of_ten_images_have(tmp_path, side, resolution):
    found = dataclasses.replace(PHOTOS, sides=(8,) * 10 + (side,) * 290)
    assert written(tmp_path, found)[0].images.resolution == resolution


@pytest.mark.parametrize(
    ("images", "labels"), [((60, 50, 70, 60, 60), "balanced"), ((200, 40, 20, 20, 20), "training")]
)
def test_uneven_classes_are_drawn_as_often_as_the_images_have_them(tmp_path, images, labels):
    """Drawn evenly they would be far from the images for their classes alone."""
    experiment, text = written(tmp_path, dataclasses.replace(PHOTOS, images=images))
    assert experiment.sampling.labels == labels
    assert ("# each class as often as the images have it; an even draw would be 47% off" in text) == (
        labels == "training"
    )


def test_unreadable_images_are_allowed_for_and_named(tmp_path):
    found = dataclasses.replace(PHOTOS, unreadable=("a/1.png (cut off)", "a/2.png (cut\noff)"))
    experiment, text = written(tmp_path, found)
    assert experiment.images.max_unreadable == 0.02
    assert "# cannot be read: a/1.png (cut off), a/2.png (cut\\noff)" in text


def test_names_and_paths_of_any_letters_stay_yaml(tmp_path):
    odd = "~/my: photos #1 'x' \"y\" größe"
    found = dataclasses.replace(PHOTOS, train=odd, classes=("a\nb: c", None, "#", "'", '"'))
    assert written(tmp_path, found)[0].images.train == odd


def test_the_command_looks_chooses_writes_and_says_so(tmp_path, capsys):
    folder = folder_of_images(tmp_path / "My Photos", each=12)
    for name in ("ant", "bee"):
        (folder / name / "large.png").write_bytes(image_bytes(sample_image(9, width=90, height=60)))
    path = tmp_path / "own.yaml"
    init.main([str(folder), "--output", str(path)])
    said = capsys.readouterr().out
    for text in ("images    38 in 3 classes of 12 to 13 (ant, bee, cat)", "20 x 16 to 90 x 60 pixels", "tiny: dpar of"):
        assert text in said
    assert "held out  3 images" in said
    assert f"dpar run --config {path}" in said
    assert "to the first samples" in said
    experiment = load_experiment(path)
    assert experiment.name == "my_photos"
    assert held_out(open_images("folder", str(folder)), 0.1).sum() == 3
    assert survey(folder).count == 38
    with pytest.raises(InputError, match="is there already"):
        init.main([str(folder), "--output", str(path)])


def test_a_name_that_none_can_have_leaves_no_file(tmp_path):
    folder = folder_of_images(tmp_path / "x", each=12)
    with pytest.raises(InputError, match="name: expected text that matches"):
        init.main([str(folder), "--name", "A B", "--output", str(tmp_path / "own.yaml")])
    assert not (tmp_path / "own.yaml").exists()
