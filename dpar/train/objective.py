"""The loss of a network, and its likelihood of held-out images: the next token of every image, or its entropy."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpar.data.codes import CodeStore
from dpar.data.loader import Batch, random_uniform, sequential
from dpar.device import to_device
from dpar.errors import InputError
from dpar.model.dpar import DPAR
from dpar.model.entropy_regressor import EntropyRegressorConfig
from dpar.model.llamagen import LlamaGen, TransformerConfig
from dpar.patches.packing import PatchLayout
from dpar.patches.rule import PatchRule
from dpar.train.distributed import Ranks


def patch_layout(rule: PatchRule, batch: Batch) -> PatchLayout:
    """The patches of a batch, from the stored entropies of its views (Algorithm 3).

    Raises:
        InputError: the codes were stored without entropies and the rule needs them.
    """
    if batch.entropy is None and rule.is_dynamic:
        raise InputError("these codes hold no entropies, which place the patches; give a manifest of scored codes")
    entropy = torch.zeros(batch.tokens.shape) if batch.entropy is None else batch.entropy
    return PatchLayout.from_starts(rule.starts(entropy))


@dataclass(frozen=True)
class Inputs:
    """Inputs of a network: without `labels` for an unconditional one, without `layout` for one without patches.

    With `entropy` (nats), the targets are the entropies instead of the tokens.
    """

    tokens: Int[Tensor, "B T"]
    labels: Int[Tensor, " B"] | None
    layout: PatchLayout | None
    entropy: Float[Tensor, "B T"] | None = None

    def to(self, device: torch.device) -> "Inputs":
        """The same on `device`."""
        if device.type == "cpu":
            return self
        labels = None if self.labels is None else to_device(self.labels, device)
        layout = None if self.layout is None else self.layout.to(device)
        entropy = None if self.entropy is None else to_device(self.entropy, device)
        return Inputs(to_device(self.tokens, device), labels, layout, entropy)

    @property
    def mean_patch_lengths(self) -> float:
        """The sum over images of the mean patch length T / M, in tokens; 0 without patches."""
        return sum(self.tokens.shape[1] / m for m in self.layout.packed.lengths) if self.layout else 0.0

    @property
    def patches(self) -> int:
        """Patches of all images; 0 without patches."""
        return self.layout.packed.total if self.layout else 0


def inputs(batch: Batch, *, labelled: bool, rule: PatchRule | None, distilled: bool = False) -> Inputs:
    """The part of `batch` that a network reads.

    Raises:
        InputError: entropies are to be learned, or place the patches, and the codes were stored without.
    """
    if distilled and batch.entropy is None:
        raise InputError("these codes hold no entropies to learn; give a manifest of scored codes")
    return Inputs(
        batch.tokens,
        batch.labels if labelled else None,
        patch_layout(rule, batch) if rule else None,
        batch.entropy if distilled else None,
    )


def drop_classes(batch: Batch, *, rate: float, null: int, seed: int) -> Batch:
    """`batch` with each label replaced by `null` with probability `rate`, by (seed, epoch, image) alone."""
    dropped = torch.from_numpy(random_uniform(seed, "class", batch.epoch, batch.images.numpy()) < rate)
    return replace(batch, labels=batch.labels.masked_fill(dropped, null))


def autocast(device: torch.device, precision: Literal["float32", "bfloat16"]) -> AbstractContextManager:
    """bf16 matrix products over fp32 weights, or fp32 throughout."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def logits_and_targets(
    network: nn.Module, given: Inputs
) -> tuple[Float[Tensor, "B N outputs"], Int[Tensor, "B N"] | Float[Tensor, "B N"]]:
    """A prediction for each of the T tokens of an image, or of the last T-1 by an unconditional network.

    A distilled gate predicts not tokens, but their entropies in nats.
    """
    if given.labels is None:
        return network(given.tokens), (given.tokens if given.entropy is None else given.entropy)[:, 1:]
    if given.layout is None:
        return network(given.tokens, given.labels), given.tokens
    return network(given.tokens, given.labels, given.layout), given.tokens


def summed_loss(
    logits: Float[Tensor, "B N outputs"], targets: Int[Tensor, "B N"] | Float[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """The cross-entropy of tokens summed over all targets (Eq. 2); of entropies, the smooth absolute error.

    The latter is half the square of errors below a nat: near the threshold, where they decide, all errors count, and
    the few tokens of which the entropy model is sure do not outweigh the others.

    Deviation: what is minimised is this divided by the number of targets, as in LlamaGen.
    """
    if targets.is_floating_point():
        return F.smooth_l1_loss(logits.squeeze(-1), targets, reduction="sum")
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a set of images under a network."""

    nll: float  # nats per predicted token; of a distilled gate the mean smooth error, which is no likelihood
    mean_patch_length: float | None  # tokens, P_avg; None without patches
    tokens: int  # predicted
    images: int


def images_at_once(config: TransformerConfig, device: torch.device) -> int:
    """Images to predict at a time: logits of 1 GiB on a GPU, a quarter of that elsewhere, and at most 256 images."""
    logits = 2**28 if device.type == "cuda" else 2**26
    return min(256, max(1, logits // (config.tokens * config.vocab_size)))


@torch.no_grad()
def likelihood(
    model: LlamaGen | DPAR,
    codes: CodeStore,
    *,
    rule: PatchRule | None,
    precision: Literal["float32", "bfloat16"],
    ranks: Ranks,
) -> Likelihood:
    """The likelihood of the first view of every image of `codes`, which the ranks share out.

    Args:
        model: run in eval mode, and restored to its previous mode afterwards.
        codes: the images; their true classes are given to a labelled network.
        rule: where the patches of a DPAR begin; None for a LlamaGen.
        ranks: all of them must call.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)  # nats, tokens, images, T / M
    share = images_at_once(model.config, ranks.device)
    mine = sequential(codes, share, rank=ranks.rank, world_size=ranks.size)
    for _ in range(0, codes.num_images, share * ranks.size):
        ranks.tick()
        batch = next(mine, None)
        # all ranks or none call a model that is divided over them: one whose share is done computes a spare image
        given = inputs(
            batch or next(sequential(codes, 1)),
            labelled=model.config.num_classes is not None,
            rule=rule,
            distilled=isinstance(model.config, EntropyRegressorConfig),
        )
        with autocast(ranks.device, precision):
            logits, targets = logits_and_targets(model, given.to(ranks.device))
        if batch is not None:
            here = [summed_loss(logits, targets).item(), targets.numel(), len(targets), given.mean_patch_lengths]
            sums += torch.tensor(here, dtype=torch.float64)
    model.train(was_training)
    total, tokens, images, lengths = ranks.total(sums).tolist()
    return Likelihood(total / tokens, lengths / images if rule else None, int(tokens), int(images))


@torch.no_grad()
def token_losses(
    model: LlamaGen | DPAR,
    codes: CodeStore,
    *,
    rule: PatchRule | None,
    precision: Literal["float32", "bfloat16"],
    device: torch.device,
) -> Float[Tensor, "I T"]:
    """The cross-entropy in nats of each token of the first view of every image: the parts of its `likelihood`.

    Args:
        model: a network of classes, in eval mode; the true classes are given to it.
        rule: where the patches of a DPAR begin; None for a LlamaGen.
    """
    found = []
    for batch in sequential(codes, images_at_once(model.config, device)):
        with autocast(device, precision):
            logits, targets = logits_and_targets(model, inputs(batch, labelled=True, rule=rule).to(device))
        found.append(F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").float().cpu())
    return torch.cat(found)
