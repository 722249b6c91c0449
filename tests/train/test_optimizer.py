"""Which tensors decay, and that the optimizer's state survives a trip to disk."""

import pytest
import torch

from dpar.train.optimizer import build_optimizer, optimizer_tensors, parameter_groups, restore_optimizer
from tests.train.tiny import tiny_task


@pytest.mark.parametrize("kind", ["dpar", "llamagen", "unconditional"])
def test_every_tensor_with_two_dims_decays_and_no_other(kind):
    model = tiny_task(kind).model
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying, others = parameter_groups(model, 0.05)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert {names[p] for p in decaying["params"]} == {n for n, p in model.named_parameters() if p.dim() >= 2}
    assert {names[p] for p in others["params"]} == {n for n, p in model.named_parameters() if p.dim() == 1}
    assert "tok_embeddings.weight" in {names[p] for p in decaying["params"]}
    without_decay = {names[p] for p in others["params"]} - {"start"}
    assert without_decay
    assert all(name.endswith("norm.weight") for name in without_decay)


def test_settings_are_section_4_1s():
    task = tiny_task("llamagen", learning_rate=1e-4)
    (first, _) = build_optimizer(task.model, task.training).param_groups
    assert (first["lr"], first["betas"], first["weight_decay"], first["fused"]) == (1e-4, (0.9, 0.95), 0.05, True)


def test_restored_state_takes_the_same_next_step():
    models, optimizers = [], []
    for _ in range(2):
        task = tiny_task("llamagen")
        models.append(task.model)
        optimizers.append(build_optimizer(task.model, task.training))

    def step(i: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in models[i].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers[i].step()

    step(0, 1)
    step(0, 2)
    models[1].load_state_dict(models[0].state_dict())
    restore_optimizer(models[1], optimizers[1], optimizer_tensors(models[0], optimizers[0]))
    for i in range(2):
        step(i, 3)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
