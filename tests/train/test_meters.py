"""Averages between two points of the curves."""

from dataclasses import asdict

from dpar.train.meters import Window


def test_an_open_window_of_a_finished_checkpoint_loads():
    stored = {"steps": 2, "loss": 8.0, "grad_norm": 1.0, "patch_length": 4.0, "patches": 16.0}
    window = Window(**stored)
    assert asdict(window) == stored
    assert window.means(with_patches=True)["patch/mean_length"] == 2.0
