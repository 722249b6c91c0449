"""Who is said to hang, by what the ranks publish."""

import time

import pytest
from torch.distributed import HashStore

from dpar.train.watch import ASKED_S, LONG_S, PATIENCE_S, Watch


@pytest.fixture
def ranks():
    store = HashStore()
    return [Watch(store, rank, 3) for rank in range(3)]


def hung(ranks, after, asked=None, silent=()):
    """Whom rank 0 misses when the others' places are as they are for `after` seconds, in which all but some spoke."""
    for each in ranks:
        each._publish()
    now = time.monotonic()
    ranks[0]._look(now)
    for each in ranks:
        if each._rank not in silent:
            each._publish()
    ranks[0]._look(now + after)
    return ranks[0]._hung(now + after, None if asked is None else now + after - asked)


def test_the_rank_that_is_behind_is_missed_after_a_while(ranks):
    for rank, passed in enumerate((3, 2, 3)):
        for place in range(passed):
            ranks[rank].at(f"place {place}")
    assert hung(ranks, PATIENCE_S - 1) == []
    assert hung(ranks, PATIENCE_S + 1) == [1]


def test_of_ranks_in_one_place_those_are_missed_that_do_not_wait(ranks):
    for rank in ranks:
        rank.at("the sums")
        rank.waits(rank._rank != 2)
    assert hung(ranks, PATIENCE_S + 1) == [2]


def test_a_rank_that_works_alone_has_long_also_when_an_end_is_asked_for(ranks):
    for rank in ranks:
        rank.at("the checkpoint", long=True)
        rank.waits(rank._rank != 0)
    assert hung(ranks, PATIENCE_S + 1) == []
    assert hung(ranks, LONG_S - 1, asked=2 * ASKED_S) == []
    assert hung(ranks, LONG_S + 1) == [0]


def test_signs_of_life_count(ranks):
    for rank in ranks:
        rank.at("the pass")
    assert hung(ranks, PATIENCE_S - 1) == []
    ranks[1].tick()
    assert hung(ranks, PATIENCE_S - 1) == []


def test_after_a_signal_nobody_waits_for_long(ranks):
    for rank in ranks:
        rank.at("the forward pass")
    ranks[0].at("the backward pass")
    ranks[2].at("the backward pass")
    assert hung(ranks, 2 * ASKED_S) == []
    assert hung(ranks, 2 * ASKED_S, asked=ASKED_S - 1) == []
    assert hung(ranks, 2 * ASKED_S, asked=ASKED_S + 1) == [1]


def test_a_process_that_is_frozen_is_missed_wherever_it_was(ranks):
    for rank in ranks:
        rank.at("the checkpoint", long=True)
    assert hung(ranks, PATIENCE_S + 1, silent=[2]) == [2]


def test_a_rank_that_has_left_is_not_missed(ranks):
    for rank in ranks:
        rank.at("the milestone", long=True)
    ranks[1]._beat = ranks[1]._beat.__class__(2**63 - 1)
    assert hung(ranks, PATIENCE_S + 1, silent=[1]) == []
