"""Faults that only a GPU would show, planted one by one: the rehearsal sees each."""

import json

import pytest
import torch

from dpar.model.layers import Block
from dpar.sampling import static_parts
from dpar.sampling.guidance import DrawSettings
from dpar.train.meters import Outcome
from tests.model import test_kernels as kernels
from tests.rehearsal import DeviceMismatchError
from tests.sampling import test_rehearsed as sampling
from tests.train import test_rehearsed as training


def test_numbers_made_on_the_host_among_the_noise(float64, monkeypatch):
    noise_at = static_parts.noise_at
    monkeypatch.setattr(
        static_parts,
        "noise_at",
        lambda keys, counters, **how: noise_at(keys, torch.arange(len(counters)), **how),
    )
    with pytest.raises(DeviceMismatchError, match=r"of tensors of the device and of the host .*dpar/sampling/noise"):
        sampling.rehearse("llamagen")


def test_batches_that_are_not_pinned(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with pytest.raises(AssertionError, match="not pinned"):
        training.assert_no_waits(training.rehearse(tmp_path, monkeypatch, "llamagen"))


def test_a_loss_that_is_read_in_every_step(tmp_path, monkeypatch):
    of = Outcome.of

    def read(step, values, images):
        values[0].item()
        return of(step, values, images)

    monkeypatch.setattr(Outcome, "of", read)
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        training.assert_no_waits(training.rehearse(tmp_path, monkeypatch, "entropy model"))


def test_an_array_of_numpy_where_the_device_computes(float64, monkeypatch):
    truncated = DrawSettings.truncated
    monkeypatch.setattr(
        DrawSettings, "truncated", lambda self, logits: truncated(self, torch.from_numpy(logits.numpy().copy()))
    )
    with pytest.raises(DeviceMismatchError, match="numpy"):
        sampling.rehearse("static")


def test_one_more_kernel_in_every_layer(monkeypatch):
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *given: forward(self, *given) + 0)
    layers, golden = 12, json.loads(kernels.GOLDEN.read_text())["LlamaGen-B"]["sampling"]["token"]
    with pytest.raises(AssertionError, match=str(golden + layers)):
        kernels.test_kernels_are_as_many_as_they_were("LlamaGen-B")
