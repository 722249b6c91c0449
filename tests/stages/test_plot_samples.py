"""The stage that shows samples beside real images."""

import numpy as np
import pytest
from PIL import Image

from dpar.config import parse_experiment
from dpar.data.images import ImageIndex, open_images
from dpar.stages import plot_samples
from tests.report import made_up
from tests.test_config import demo


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

    def remember(columns, names, draw=plot_samples.sample_columns):
        shown.update(columns=columns, names=names)
        return draw(columns, names)

    monkeypatch.setattr(plot_samples, "sample_columns", remember)
    samples = sorted(tmp_path.glob("samples/*/seed0/00000.npz"))
    assert len(samples) == 5
    plot_samples.main(
        [
            *("--experiment", str(tmp_path / "experiment.json"), "--index", str(tmp_path / "val.json")),
            *("--samples", *map(str, samples), "--output", str(tmp_path / "figures" / "samples.png")),
        ]
    )
    assert list(shown["columns"]) == ["real", *(path.parents[1].name for path in samples)]
    assert shown["names"] == [f"class {c}" for c in range(4)]
    real = shown["columns"]["real"]
    assert real.shape == (4, plot_samples.PICTURES, 32, 32, 3)
    assert [int(row.max()) for row in real] == [0, 60, 120, 180]
    assert (tmp_path / "figures" / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_class_with_few_pictures_is_filled_up_with_white():
    block = plot_samples._padded([np.zeros((8, 8, 3), np.uint8)], 8)
    assert [int(picture.max()) for picture in block] == [0] + [255] * (plot_samples.PICTURES - 1)
