"""The page of first pictures."""

import numpy as np
import pytest
from PIL import Image

from dpar.errors import InputError
from dpar.stages.write_first_report import main
from tests.stages.experiments import write_experiment
from tests.workflow.conftest import ROOT


def flags(folder, captions):
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for name in ("samples", "entropy_maps"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(figures / f"{name}.png")
    paths = [str(figures / "samples.png"), str(figures / "entropy_maps.png")]
    experiment = write_experiment(folder)
    output = folder / "first_report.html"
    return ["--experiment", str(experiment), "--figures", *paths, "--captions", str(captions), "--output", str(output)]


def test_the_page_shows_both_pictures_and_says_that_nothing_is_measured(tmp_path):
    main(flags(tmp_path, ROOT / "workflow" / "report"))
    page = (tmp_path / "first_report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "Nothing is measured yet" in page
    assert page.index('id="samples"') < page.index('id="entropy_maps"')


def test_a_figure_without_a_caption_is_named(tmp_path):
    (tmp_path / "captions").mkdir()
    with pytest.raises(InputError, match=r"samples\.rst is missing"):
        main(flags(tmp_path, tmp_path / "captions"))
