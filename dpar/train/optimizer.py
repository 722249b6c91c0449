"""AdamW as Section 4.1 has it: weight decay on every tensor with two or more dimensions, none on norms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from dpar.experiment.settings import Training
from dpar.train.distributed import shard_like

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters in two groups: those with >= 2 dims (embeddings included) decay, the others do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, training: Training) -> AdamW:
    """Fused AdamW over `parameter_groups`, at a constant rate."""
    groups = parameter_groups(model, training.weight_decay)
    return AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: Adam) -> dict[str, Tensor]:
    """The optimizer's moments and step counts, each named after its parameter: `exp_avg.{parameter}` and so on."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def restore_optimizer(model: nn.Module, optimizer: Adam, tensors: Mapping[str, Tensor]) -> None:
    """Restores the result of `optimizer_tensors`, in full; a parameter without moments there has none yet."""
    for name, parameter in model.named_parameters():
        if f"{MOMENTS[0]}.{name}" in tensors:
            given = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
            optimizer.state[parameter] = {
                # fused optimizers want the moments laid out in memory as the parameter is (channels last)
                moment: torch.empty_like(parameter).copy_(shard_like(parameter, tensor))
                if tensor.shape
                else tensor.to(parameter.device, copy=True)
                for moment, tensor in given.items()
            }
