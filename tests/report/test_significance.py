"""Differences of rows: paired by the seed of training, tested, and named with what they are compared with."""

import numpy as np
import pytest
from scipy import stats

from dpar.experiment.cells import sample_cells
from dpar.experiment.loading import parse_experiment
from dpar.report import significance
from dpar.report.significance import holm, paired_chance, paired_lines, student_tails, welch_chance
from tests.experiment.test_settings import demo
from tests.report.made_up import metrics

ROWS = [
    {"model": "dpar", "patchify.max_length": 2},
    {"model": "dpar"},
    {"model": "dpar", "inference.threshold": 2.0},
]


@pytest.mark.parametrize("degrees", range(1, 12))
@pytest.mark.parametrize("t", [0.0, 0.3, -2.5, 12.0, 300.0])
def test_the_tails_are_students(t, degrees):
    assert student_tails(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), abs=1e-9)


def test_the_chance_is_that_of_the_paired_test():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 5))
    assert paired_chance(list(a - b)) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_chance([0.0, 0.0, 0.0]) == 1
    assert paired_chance([0.5, 0.5, 0.5]) == 0


def test_the_chance_of_two_means_is_welchs():
    a, b = (0.57, 0.07, 3), (0.36, 0.054, 3)
    expected = stats.ttest_ind_from_stats(*a, *b, equal_var=False)
    # 3.76 degrees of freedom, rounded down
    assert welch_chance(a, b) == pytest.approx(2 * stats.t.sf(abs(expected.statistic), 3))
    equal = (0.5, 0.1, 4), (0.7, 0.1, 4)
    assert welch_chance(*equal) == pytest.approx(stats.ttest_ind_from_stats(*equal[0], *equal[1]).pvalue)
    assert welch_chance((1.0, 0.0, 2), (1.0, 0.0, 2)) == 1
    assert welch_chance((1.0, 0.0, 2), (2.0, 0.0, 2)) == 0
    for unknown in ((1.0, 0.1, 1), (1.0, float("nan"), 3), (float("nan"), 0.1, 3)):
        assert welch_chance(unknown, b) is None


def test_holm_corrects_each_by_those_that_are_not_surer():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


def measured(experiment, distances, likelihoods):
    """Distances and likelihoods by (name of the cell without its seed, seed of training)."""
    found, predicted = {}, {}
    for cell in sample_cells(experiment).values():
        plain, seed = cell.slug, 0
        for number in (1, 2):
            if f"_seed{number}" in plain:
                plain, seed = plain.replace(f"_seed{number}", ""), number
        if (plain, seed) in distances:
            found[cell.slug, 0] = metrics(distances[plain, seed])
        if (plain, seed) in likelihoods:
            predicted[cell.model, cell.milestone] = {"nll": likelihoods[plain, seed]}
    return found, predicted


@pytest.fixture
def experiment():
    tables = {"t": {"title": "T", "rows": ROWS}}
    return parse_experiment(demo(tables=tables, training_seeds=[0, 1, 2], sampling__seeds=[0]), "test")


def test_rows_are_compared_with_the_described_model_seed_by_seed(experiment):
    base, short, other = "dpar", "dpar_pmax2", "dpar-eth2"
    distances = {(base, 0): 5.0, (base, 1): 4.0, (base, 2): 6.0}
    distances |= {(short, 0): 6.0, (short, 1): 5.1, (short, 2): 6.9, (other, 0): 5.5, (other, 1): 3.5, (other, 2): 6.1}
    likelihoods = {(base, 0): 2.5, (base, 1): 2.0, (base, 2): 3.0}
    likelihoods |= {(short, seed): value + 0.1 * (seed + 1) for (_, seed), value in likelihoods.copy().items()}
    found, predicted = measured(experiment, distances, likelihoods)
    head, of_short, of_other = paired_lines(experiment, "t", found, predicted, "FD[x,4]")
    assert "over the tests of this table (3)" in head
    chances = holm([stats.ttest_1samp(d, 0).pvalue for d in ([0.1, 0.2, 0.3], [1, 1.1, 0.9], [0.5, -0.5, 0.1])])
    assert of_short == (
        f"dpar, max_length 2 - dpar: NLL +0.20 ± 0.10 (p {chances[0]:.2g}, in direction); "
        f"FD[x,4] +1.00 ± 0.10 (p {chances[1]:.2g}, holds)"
    )
    assert of_other == f"dpar, threshold 2.0 - dpar: FD[x,4] +0.03 ± 0.50 (p {chances[2]:.2g}, cannot be told)"

    del found["dpar_seed1", 0]  # seeds that one of both lacks are left out, and two are too few
    assert paired_lines(experiment, "t", found, {}, "FD[x,4]") == []


def test_states_are_compared_with_states_of_the_same_length(experiment):
    vary = {"milestone": [200, 400]}
    tables = {"t": {"title": "T", "rows": [{"model": "llamagen"}, {"model": "dpar"}], "vary": vary}}
    values = demo(tables=tables, training_seeds=[0, 1, 2], training__milestones=[200])
    experiment = parse_experiment(values, "test")
    pairs = [
        (significance._label(row, baseline), significance._label(baseline, row))
        for row, baseline in significance._pairs(experiment, "t")
    ]
    assert pairs == [("dpar, step200", "llamagen, step200"), ("dpar, step400", "llamagen, step400")]


def test_one_training_has_no_test(experiment):
    alone = parse_experiment(demo(tables={"t": {"title": "T", "rows": ROWS}}), "test")
    found, predicted = measured(alone, {("dpar", 0): 1.0, ("dpar_pmax2", 0): 2.0}, {("dpar", 0): 1.0})
    assert paired_lines(alone, "t", found, predicted, "FD") == []
