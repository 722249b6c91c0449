"""Pieces that do not fit the memory are halved; everything else that goes wrong is not taken for that."""

import numpy as np
import pytest
import torch

from dpar.errors import InputError
from dpar.memory import in_pieces, out_of_memory


def raised(work) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        work()
    return caught.value


def test_what_a_full_memory_says():
    """Real refusals, of more than any machine has."""
    assert out_of_memory(raised(lambda: torch.empty(2**55)))
    assert out_of_memory(raised(lambda: np.empty(2**55)))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(raised(lambda: torch.ones(2, 3) @ torch.ones(2, 3)))


def worker(limit, pieces):
    def work(first, last):
        pieces.append((first, last))
        if last - first > limit:
            torch.empty(2**55)
        return list(range(first, last))

    return work


@pytest.mark.parametrize("limit", [1, 3, 5, 100])
def test_every_image_once_and_in_order(limit, capsys):
    pieces = []
    found = [i for piece in in_pieces(worker(limit, pieces), 2, 25, 10) for i in piece]
    assert found == list(range(2, 25))
    sizes = [last - first for first, last in pieces]
    assert sizes[0] == 10
    assert sum(size > limit for size in sizes) <= 4
    assert ("too small" in capsys.readouterr().err) == (limit < 10)


def test_one_image_must_fit():
    with pytest.raises(InputError, match="not even one image"):
        list(in_pieces(worker(0, []), 0, 4, 4))


def test_other_errors_are_no_lack_of_memory():
    def broken(first, last):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_pieces(broken, 0, 4, 4))
