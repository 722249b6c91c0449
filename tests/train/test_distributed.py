"""The losses, the weights and the curves do not depend on the number of ranks, nor on how the weights lie on them."""

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file

from dpar.data.loader import batches
from dpar.launched import LAUNCHER
from dpar.train import loop
from dpar.train.blocks import blocks
from dpar.train.distributed import ranks
from dpar.train.objective import summed_loss
from tests.train.processes import run_on_ranks, train_on_ranks
from tests.train.test_loop import same_weights
from tests.train.tiny import history, tiny_task, train

SETTINGS = {"until": 8, "dropout": 0.0, "log_every": 1, "validate_every": 4, "grad_clip": 0.5}
FSDP = {"fsdp_above": 0}


def check_same(one, two):
    """Curves to float tolerance, gradient norms and validation among them; and weights."""
    assert history(one).keys() == history(two).keys()
    for step, row in history(one).items():
        assert history(two)[step] == pytest.approx(row, rel=1e-5)
    for name, tensor in load_file(one / "model.safetensors").items():
        # AdamW divides by the root of the second moment: a gradient near 0 carries its rounding into the weight
        torch.testing.assert_close(load_file(two / "model.safetensors")[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", [{}, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["dpar", "llamagen", "unconditional"])
def test_two_ranks_give_the_losses_of_one(tmp_path, kind, way):
    one = train(tmp_path / "one", kind, **SETTINGS)
    assert max(row["train/grad_norm"] for row in history(one).values()) > 0.5, "nothing was clipped"
    check_same(one, train_on_ranks(tmp_path / "two", kind, 2, **SETTINGS, **way))


def test_two_ranks_with_micro_batches_and_an_average_go_on_as_one(tmp_path):
    settings = SETTINGS | {"ema": 0.9}
    train_on_ranks(tmp_path / "mixed", "dpar", 2, **settings | {"accumulate": 2, "until": 4})
    mixed = train(tmp_path / "mixed", "dpar", **settings | {"accumulate": 4})
    one = train(tmp_path / "one", "dpar", **settings)
    for step, row in history(one).items():
        assert history(mixed)[step] == pytest.approx(row, rel=1e-5)


@pytest.mark.parametrize("order", [(FSDP, {}), ({}, FSDP)], ids=["fsdp then ddp", "ddp then fsdp"])
def test_a_state_goes_on_whichever_way_weights_lie_on_the_ranks(tmp_path, order):
    settings = SETTINGS | {"ema": 0.9, "accumulate": 2}
    one = train(tmp_path / "one", "dpar", **settings)
    for until, way in zip((4, 8), order, strict=True):
        mixed = train_on_ranks(tmp_path / "mixed", "dpar", 2, **settings | {"until": until}, **way)
    check_same(one, mixed)


def test_divided_weights_go_on_to_the_bit_and_on_one_rank_too(tmp_path):
    settings = {"ema": 0.9, "accumulate": 2, "activation_checkpointing_above": 0, **FSDP}
    whole = train_on_ranks(tmp_path / "whole", "dpar", 2, until=8, **settings)
    for until in (3, 8):
        pieces = train_on_ranks(tmp_path / "pieces", "dpar", 2, until=until, **settings)
    assert same_weights(whole, pieces)
    states = [load_file(tmp_path / name / "state" / "step00000008.safetensors") for name in ("whole", "pieces")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    train(tmp_path / "pieces", "dpar", 9, **settings)


def write_shares(folder):
    """What a rank holds of each weight of a divided model, and of the whole weight, in numbers."""
    with ranks() as here:
        model = tiny_task("dpar").model
        here.shard(model, blocks(model))
        shares = {name: (p.to_local().numel(), p.numel()) for name, p in model.named_parameters()}
        (folder / f"{here.rank}.json").write_text(json.dumps(shares))


def test_each_rank_holds_its_part_of_the_weights(tmp_path):
    assert [code for code, _ in run_on_ranks(write_shares, 2, tmp_path)] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first.keys() == dict(tiny_task("dpar").model.named_parameters()).keys()
    for name, (part, whole) in first.items():
        assert part + second[name][0] == whole, name
    assert sum(part for part, _ in first.values()) < 0.51 * sum(whole for _, whole in first.values())


def train_with_a_broken_loss(folder):
    """The loss of rank 1 is NaN at step 5."""
    calls = []

    def broken(logits, targets):
        calls.append(1)
        return summed_loss(logits, targets) * (math.nan if len(calls) == 5 and os.environ["RANK"] == "1" else 1)

    loop.summed_loss = broken
    train(folder, "dpar", checkpoint_every=2, validate_every=100, log_every=100)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_the_images_of_all(tmp_path):
    ends = run_on_ranks(train_with_a_broken_loss, 2, tmp_path)
    stream = batches(tiny_task("dpar").train, batch_size=8, seed=0)
    images = sorted([next(stream).images.tolist() for _ in range(5)][-1])
    for code, said in ends:
        assert code == 1
        assert f"broke at step 5: loss nan, gradient norm nan; the batch was images {images}" in said
        assert "the last good checkpoint: step 4" in said


def test_one_process_of_a_launcher_computes_on_its_own_gpu(monkeypatch):
    """The third process of a machine, alone in its group: what names no device is made on that GPU too."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name, value in {"RANK": "0", "LOCAL_RANK": "2", "WORLD_SIZE": "1", LAUNCHER: str(os.getppid())}.items():
        monkeypatch.setenv(name, value)
    with ranks() as here:
        assert here.device == torch.device("cuda", 2)
    assert chosen == [here.device]
