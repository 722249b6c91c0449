"""Linear probe: an image's class read from a model's states by one linear layer (Section 4.5, Table 7).

The paper pools "the last hidden features" of DPAR's patch transformer or of LlamaGen's layers and fits a linear
classifier on them; the rest of the protocol is settled in ARCHITECTURE.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpar.data.loader import Batch
from dpar.model.dpar import DPAR
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule
from dpar.train.objective import Inputs, autocast, inputs, logits_and_targets

CHUNK = 65536  # images whose class scores are held at a time


def pooled_states(model: LlamaGen | DPAR, given: Inputs) -> Float[Tensor, "B D"]:
    """The states after the last block of LlamaGen, or of DPAR's patch transformer, averaged over tokens or patches.

    The place of the class token is left out, which has seen nothing of the image; the last token or patch is never an
    input and has no state.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> None:
        found.append(output)

    layer = model.layers[-1] if isinstance(model, LlamaGen) else model.patch_transformer
    handle = layer.register_forward_hook(keep)
    try:
        logits_and_targets(model, given)
    finally:
        handle.remove()
    states = found[0].float() if found[0].dtype.itemsize < 4 else found[0]
    if given.layout is None:
        return states[:, 1:].mean(1)
    packed = given.layout.packed
    sums = states.new_zeros(len(packed.lengths), states.shape[1]).index_add_(0, packed.sequence_ids, states)
    inputs_of_image = packed.cu_seqlens.diff()[:, None] - 1
    return (sums - states[packed.cu_seqlens[:-1].long()]) / inputs_of_image


@torch.no_grad()
def describe_codes(
    model: LlamaGen | DPAR,
    batches: Iterable[Batch],
    *,
    rule: PatchRule | None,
    precision: Literal["float32", "bfloat16"],
    device: torch.device,
) -> tuple[Float[Tensor, "N D"], Int[Tensor, "N"]]:
    """Pooled states of images whose class the model is not told, and their labels, on the host.

    Args:
        model: class-conditional, in eval mode; reads the null class.
        rule: where the patches of a DPAR begin.
    """
    features, labels = [], []
    for batch in batches:
        blind = replace(batch, labels=torch.full_like(batch.labels, model.null_label))
        with autocast(device, precision):
            states = pooled_states(model, inputs(blind, labelled=True, rule=rule).to(device))
        features.append(states.cpu())
        labels.append(batch.labels)
    return torch.cat(features), torch.cat(labels)


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features that are brought to mean 0 and variance 1 first."""

    mean: Float[Tensor, "D"]
    scale: Float[Tensor, "D"]
    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, "C"]

    def __call__(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """The scores of each class."""
        return F.linear((features - self.mean) / self.scale, self.weight, self.bias)


def fit_probe(
    features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], *, num_classes: int, penalty: float, iterations: int
) -> Probe:
    """The minimum of the mean cross-entropy (nats) + penalty / 2 |weight|^2, which is one: no seed, order or rate.

    Args:
        penalty: more than 0, so that the minimum exists.
        iterations: of L-BFGS, at most.
    """
    mean, scale = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    weight = features.new_zeros(num_classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = penalty / 2 * weight.square().sum()
        total.backward()
        for some, theirs in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            scores = F.linear((some - mean) / scale, weight, bias)
            part = F.cross_entropy(scores, theirs.long(), reduction="sum") / len(features)
            part.backward()
            total = total.detach() + part.detach()
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  # a tensor, as torch's documentation has it
    return Probe(mean, scale, weight.detach(), bias.detach())


def top_k_accuracy(probe: Probe, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], k: int) -> float:
    """The share of images whose class is among the k with the highest scores, in per cent."""
    hits = 0
    for some, theirs in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        hits += (probe(some).topk(k).indices == theirs.to(some.device)[:, None]).any(1).sum().item()
    return 100 * hits / len(features)
