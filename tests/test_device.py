"""Which device a process takes, batches of one shape, and the precision of float32 products."""

import os
from threading import Event, Thread

import pytest
import torch

from dpar.device import default_device, full_float32, pad_batch, tf32_products, without_tf32
from dpar.launched import LAUNCHER


def test_jobs_take_the_gpus_of_a_machine_in_turn(monkeypatch):
    assert default_device(3) == torch.device("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [default_device(turn).index for turn in (0, 1, 4, 7)] == [0, 1, 0, 3]
    assert default_device().index == 0
    for name, value in {"RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert default_device(1).index == 1, "somebody else's"
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    assert default_device(1).index == 2


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_a_batch_is_filled_up_with_copies(rows):
    batch = torch.arange(rows * 6).reshape(rows, 2, 3)
    found = pad_batch(batch, 5)
    assert found.shape == (5, 2, 3)
    assert torch.equal(found[:rows], batch)
    assert (found[rows:] == batch[0]).all()


BACKENDS = torch.backends
PARTS = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv)


def chosen(part, value):
    """A program's choice by the newer setting."""
    return lambda: setattr(part, "fp32_precision", value)


@pytest.fixture
def settings():
    """Puts PyTorch's settings back."""
    before = [part.fp32_precision for part in (BACKENDS, *PARTS)]
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for part, value in zip((BACKENDS, *PARTS), before, strict=True):
        part.fp32_precision = value


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    "choose",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("medium"),
        chosen(BACKENDS, "tf32"),
        chosen(BACKENDS.cuda.matmul, "tf32"),
        chosen(BACKENDS.cudnn.conv, "ieee"),
        chosen(BACKENDS.mkldnn.matmul, "bf16"),
    ],
    ids=["nothing", "older", "all", "matmul", "conv", "mkldnn"],
)
def test_products_have_the_bits_that_a_block_asks_for_whatever_the_program_chose(choose):
    """PyTorch refuses to answer by its older functions where the newer ones were used."""
    choose()
    before = [part.fp32_precision for part in PARTS]
    with full_float32():
        assert {part.fp32_precision for part in PARTS} == {"ieee"}
        assert torch.get_float32_matmul_precision() == "highest", "a compiler asks the older functions"
        assert not BACKENDS.cudnn.allow_tf32
        with tf32_products(torch.device("cuda")):
            assert [part.fp32_precision for part in PARTS] == ["tf32", *["ieee"] * 4]
            assert BACKENDS.cuda.matmul.allow_tf32
        with tf32_products(torch.device("cpu")), without_tf32():
            assert {part.fp32_precision for part in PARTS} == {"ieee"}
        assert {part.fp32_precision for part in PARTS} == {"ieee"}
    assert [part.fp32_precision for part in PARTS] == before


@pytest.mark.usefixtures("settings")
def test_a_thread_without_tf32_waits_for_one_with_it():
    found, entered = [], Event()

    def decode():
        entered.set()
        with without_tf32():
            found.append(BACKENDS.cuda.matmul.fp32_precision)

    with full_float32():
        thread = Thread(target=decode)
        with tf32_products(torch.device("cuda")):
            thread.start()
            entered.wait()
            thread.join(0.05)
            assert thread.is_alive()
        thread.join()
    assert found == ["ieee"]
