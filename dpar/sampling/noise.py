"""Counter-based noise: a function of image seed, position and code alone."""

from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.splitmix import STEP, shifted, splitmix64


def image_seed(seed: int, image: int) -> int:
    """The seed of one image of a set of samples: a hash of the set's seed and the image's number, 64 bits, signed."""
    return int.from_bytes(blake2b(f"{seed}/{image}".encode(), digest_size=8).digest(), signed=True)


def gumbel(seeds: Int[Tensor, " B"], start: int, stop: int, vocab_size: int) -> Float[Tensor, "B S V"]:
    """Float64 Gumbel noise of the codes at positions start..stop-1 of each image.

    Added to log probabilities, the largest sum is a draw from the distribution. Unlike a look-up in the cumulative
    distribution, a small change of the logits moves the draw with a probability of that size only, so that rounding
    (another batch size, another device) seldom changes an image even in bfloat16.
    """
    counters = torch.arange(start * vocab_size, stop * vocab_size, device=seeds.device)
    return gumbel_at(splitmix64(seeds), counters).view(len(seeds), stop - start, vocab_size)


def gumbel_at(keys: Int[Tensor, " B"], counters: Int[Tensor, " N"]) -> Float[Tensor, "B N"]:
    """That noise at places of each image's stream: position times codes, plus code.

    Args:
        keys: `splitmix64` of the seeds.
    """
    words = splitmix64(keys[:, None] + (counters + 1) * STEP)
    uniform = shifted(words, 12).double().add_(0.5).mul_(2.0**-52)  # in (0, 1), both ends out of reach
    return uniform.log_().neg_().log_().neg_()
