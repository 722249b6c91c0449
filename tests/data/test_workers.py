"""Threads that work ahead."""

import threading

import pytest

from dpar.data.workers import mapped, reported


def test_results_come_in_order_from_several_threads():
    gate = threading.Barrier(3, timeout=10)  # opens only when three work at once

    def work(i):
        gate.wait()
        return i * i

    assert list(mapped(work, range(9), threads=3, ahead=5)) == [i * i for i in range(9)]


def test_few_results_wait():
    begun = []
    results = mapped(lambda i: begun.append(i) or i, range(1000), threads=2, ahead=3)
    for i in range(5):
        assert next(results) == i
    assert len(begun) <= 5 + 3
    results.close()


def test_an_error_ends_the_pass_at_its_place():
    begun = []

    def work(i):
        begun.append(i)
        if i == 3:
            raise ValueError("three")
        return i

    results = mapped(work, range(1000), threads=1, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 10


def test_a_pass_says_how_far_it_is(capsys):
    assert list(reported(iter([1, 2, 3]), 5, "read", size=2, every=0.0)) == [1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"read {n} of 5 images" for n in (2, 4, 5)]
    assert "left" in lines[0]
    assert "left" not in lines[-1]
    list(reported(iter([1, 2, 3]), 5, "read", size=2))
    assert capsys.readouterr().err.startswith("read 5 of 5 images")
