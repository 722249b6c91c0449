"""Inception Score: how confident a classifier is of each image, and how evenly over the classes."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.errors import InputError


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over the splits of exp(mean KL), between 1 and the number of classes."""

    mean: float
    std: float
    splits: int


def inception_score(logits: Float[Tensor, "N C"], split_size: int = 5000) -> InceptionScore:
    """The mean over consecutive splits of exp(mean KL(p(y|x) | p(y))), in float64, splits taken in file order.

    A last, shorter split counts like the others, as in the ADM evaluator. The order matters: see `splits_differ`.

    Args:
        split_size: images per split.

    Raises:
        InputError: a logit is not finite, there is none, or they are probabilities.
    """
    if len(logits) == 0 or split_size < 1:
        raise InputError(f"an Inception Score of {len(logits)} images in splits of {split_size} does not exist")
    if not logits.isfinite().all():
        raise InputError("the logits contain NaN or infinity; look at the images or the network that made them")
    if (logits >= 0).all() and ((logits.double().sum(-1) - 1).abs() < 0.01).all():
        raise InputError(
            f"the class scores of all {len(logits)} images are probabilities, which sum to 1; expected logits, as they "
            "are before the softmax: give these, or the logarithms"
        )
    scores = []
    for split in logits.split(split_size):
        log_p = split.double().log_softmax(-1)
        log_marginal = log_p.logsumexp(0) - math.log(len(split))
        scores.append((log_p.exp() * (log_p - log_marginal)).sum(-1).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(values.mean().item(), values.std(correction=0).item(), len(scores))


def splits_differ(classes: Int[Tensor, "N"], split_size: int) -> bool:
    """Whether consecutive splits hold other classes than the whole, as in a file sorted by class.

    Such splits turn the Inception Score into nonsense (62 for 298). Pearson's statistic X of the table split x class is
    about its degrees of freedom for a shuffled file, and lowers the score by the factor exp(-X / 2N): true where X is
    eight standard deviations above chance and what it has above chance costs more than one per cent of the score.

    Args:
        classes: the label of each image, or the class that the network assigns to it.
    """
    names, classes = classes.unique(return_inverse=True)  # a file may number its classes as it likes
    count, kinds = len(classes), len(names)
    split = torch.arange(count, device=classes.device) // split_size
    table = torch.bincount(split * kinds + classes, minlength=(int(split[-1]) + 1) * kinds).reshape(-1, kinds).double()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    expected = table.sum(1, keepdim=True) * table.sum(0) / count
    excess = ((table - expected).square() / expected).sum().item() - freedom
    return excess > 8 * math.sqrt(2 * freedom) and excess / (2 * count) > 0.01
