"""The stage that shows samples next to real images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpar.data.images import ImageIndex, open_images
from dpar.experiment.loading import parse_experiment
from dpar.stages import plot_samples
from tests.experiment.test_settings import demo
from tests.report import made_up

PNG = (Path(__file__).parents[2] / "docs/results/demo/samples.png").read_bytes()


@pytest.fixture
def experiment():
    return parse_experiment(demo(images__resolution=32, images__num_classes=4), "test")


def test_samples_stand_beside_real_images_a_row_a_class(tmp_path, experiment, monkeypatch):
    made_up.write(tmp_path, experiment)
    for label in range(4):
        for number in range(5):
            path = tmp_path / "real" / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 32, 3), 60 * label, np.uint8)).save(path)
    ImageIndex.build(open_images("folder", str(tmp_path / "real")), resolution=32, num_classes=4).save(
        tmp_path / "val.json"
    )
    shown = {}

    def remember(columns, names, side, draw=plot_samples.sample_columns):
        shown.update(columns=columns, names=names)
        return draw(columns, names, side)

    monkeypatch.setattr(plot_samples, "sample_columns", remember)
    samples = sorted(tmp_path.glob("samples/*/seed0/00000.npz"))
    assert len(samples) == 5
    flags = ["--experiment", str(tmp_path / "experiment.json"), "--index", str(tmp_path / "val.json")]
    flags += ["--output", str(tmp_path / "figures" / "samples.png"), "--figure", "samples"]
    flags += ["--samples", *map(str, samples)]
    plot_samples.main(flags)
    assert list(shown["columns"]) == ["real", *(path.parents[1].name for path in samples)]
    assert shown["names"] == [f"class {c}" for c in range(4)]
    real = shown["columns"]["real"]
    assert real.shape == (4, plot_samples.SHOWN, 32, 32, 3)
    assert [int(row.max()) for row in real] == [0, 60, 120, 180]
    plot_samples.main([*flags, "--classes", str(tmp_path / "val.json")])
    assert shown["names"] == ["class0", "class1", "class2", "class3"]
    assert (tmp_path / "figures" / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_class_with_few_pictures_is_filled_up_with_white():
    images, labels = np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1])
    block = plot_samples.of_classes(images, labels, [1, 0], 2)
    assert [[int(picture.max()) for picture in row] for row in block] == [[0, 0], [0, 255]]


def test_a_figure_shows_its_cells_and_classes_alone(tmp_path, monkeypatch):
    figure = {"title": "F", "rows": [{"model": "dpar"}], "classes": [3, 1], "images": 5}
    values = demo(images__resolution=32, images__num_classes=4, figures={"figure5": figure})
    made_up.write(tmp_path, parse_experiment(values, "test"))
    shown = {}
    monkeypatch.setattr(plot_samples, "sample_columns", lambda *args: shown.update(args=args))
    monkeypatch.setattr(plot_samples, "save", lambda figure, path: path.write_bytes(PNG))
    flags = ["--experiment", tmp_path / "experiment.json", "--figure", "figure5"]
    flags += ["--samples", tmp_path / "samples" / "dpar" / "seed0" / "00000.npz", "--output", tmp_path / "f.png"]
    plot_samples.main(list(map(str, flags)))
    columns, names, side = shown["args"]
    assert side == plot_samples.THUMBNAIL, "32 pixels are less than a thumbnail"
    assert names == ["class 3", "class 1"]
    assert {name: block.shape for name, block in columns.items()} == {"dpar": (2, 5, 32, 32, 3)}
    assert (columns["dpar"][:, 4] == 255).all(), "four images of each class were drawn"
