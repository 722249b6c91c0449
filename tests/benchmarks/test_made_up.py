"""Made-up entropies are as the paper's where it counts."""

import numpy as np
import pytest

from dpar.benchmarks.made_up import made_up_entropies
from dpar.patches.calibration import calibrate
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule


def test_made_up_entropies_give_the_papers_patches_to_images_that_differ():
    entropy = made_up_entropies(512, (16, 16), np.random.default_rng(0))
    threshold = calibrate(entropy, 1.81, max_length=4, grid_width=16)
    counts = PatchCounts.under(PatchRule(16, threshold, max_length=4), entropy)
    assert counts.mean_patch_length == pytest.approx(1.81, abs=1e-3)
    assert counts.percentile(95) - counts.percentile(5) > 20
