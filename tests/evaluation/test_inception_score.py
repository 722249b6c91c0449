"""The Inception Score: its bounds, the order of the file, and how a sorted file is noticed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.errors import InputError
from dpar.evaluation.inception_score import inception_score, splits_differ
from tests.oracles import metrics as oracle


def draw(count, classes, seed=0, sharp=3.0):
    return sharp * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def one_hot(classes, each):
    """Certain predictions, `each` of a class, shuffled round-robin."""
    return 1000.0 * torch.eye(classes).repeat(each, 1)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(count=st.integers(1, 90), classes=st.integers(2, 9), split=st.integers(1, 40), seed=st.integers(0, 99))
def test_it_is_the_plain_formula_and_lies_between_one_and_the_number_of_classes(count, classes, split, seed):
    logits = draw(count, classes, seed)
    score = inception_score(logits, split)
    assert score.mean == pytest.approx(oracle.inception_score(logits, split), rel=1e-9)
    assert 1 - 1e-9 <= score.mean <= classes + 1e-9
    assert score.splits == -(-count // split)


def test_certain_and_balanced_is_the_number_of_classes_and_uniform_is_one():
    assert inception_score(one_hot(10, 50), 100).mean == pytest.approx(10, rel=1e-12)
    assert inception_score(torch.zeros(100, 10), 50).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(1000.0 * torch.eye(10)[torch.zeros(80, dtype=torch.long)], 40).mean == pytest.approx(1)


def test_scores_do_not_change_with_a_constant_added_to_an_images_logits():
    logits = draw(60, 5)
    assert inception_score(logits + 100, 20).mean == pytest.approx(inception_score(logits, 20).mean, rel=1e-5)


def test_splits_are_taken_in_file_order_so_that_a_sorted_file_scores_low():
    shuffled = one_hot(10, 100)
    ordered = shuffled[shuffled.argmax(1).argsort(stable=True)]
    assert inception_score(shuffled, 100).mean == pytest.approx(10)
    assert inception_score(ordered, 100).mean == pytest.approx(1)
    assert inception_score(ordered, 1000).mean == pytest.approx(10)
    assert splits_differ(ordered.argmax(1), 100)
    assert not splits_differ(shuffled.argmax(1), 100)
    assert not splits_differ(ordered.argmax(1), 1000)


def test_the_spread_is_that_of_the_splits():
    logits = draw(40, 4)
    parts = torch.tensor([inception_score(part, 20).mean for part in logits.split(20)])
    score = inception_score(logits, 20)
    assert score.std == pytest.approx(parts.std(correction=0).item(), rel=1e-5)


@pytest.mark.parametrize(("count", "classes", "split"), [(50_000, 1000, 5000), (320, 8, 80), (100, 30, 10)])
def test_chance_is_not_taken_for_order(count, classes, split):
    for seed in range(20):
        labels = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))
        assert not splits_differ(labels, split)


def test_labels_may_be_any_numbers():
    labels = torch.arange(400) * 30 // 400
    for numbered in (labels, 2**31 - 1 - labels):
        assert splits_differ(numbered, 100)
        assert not splits_differ(numbered[torch.randperm(400, generator=torch.Generator().manual_seed(0))], 100)


@pytest.mark.parametrize(("count", "classes", "split"), [(50_000, 1000, 5000), (320, 8, 80), (400, 30, 100)])
def test_order_is_seen_through_a_network_that_is_often_wrong(count, classes, split):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) * classes // count
    wrong = torch.rand(count, generator=generator) < 0.4
    assigned = torch.where(wrong, torch.randint(0, classes, (count,), generator=generator), labels)
    assert splits_differ(assigned, split)


def test_nan_and_nothing_are_refused():
    with pytest.raises(InputError, match="NaN"):
        inception_score(torch.full((4, 3), float("nan")), 2)
    with pytest.raises(InputError, match="0 images"):
        inception_score(torch.zeros(0, 3), 2)


def test_probabilities_are_no_logits():
    logits = 5 * torch.randn(50, 10)
    for probabilities in (logits.softmax(-1), logits.softmax(-1).half(), torch.eye(10)):
        with pytest.raises(InputError, match=r"are probabilities, which sum to 1; expected logits"):
            inception_score(probabilities, 25)
    assert inception_score(logits.log_softmax(-1), 25).mean == pytest.approx(inception_score(logits, 25).mean)
