"""Counter-based noise: a function of image seed, position and code alone."""

from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _signed(word: int) -> int:
    """A 64-bit word as the int64 with the same bits."""
    return word - (1 << 64) if word >> 63 else word


# SplitMix64: the n-th number of a stream is a hash of key + n * STEP, so that any one can be had without the others.
STEP = _signed(0x9E3779B97F4A7C15)
FIRST = _signed(0xBF58476D1CE4E5B9)
SECOND = _signed(0x94D049BB133111EB)


def image_seed(seed: int, image: int) -> int:
    """The seed of one image of a set of samples: a hash of the set's seed and the image's number, 64 bits, signed."""
    return int.from_bytes(blake2b(f"{seed}/{image}".encode(), digest_size=8).digest(), signed=True)


def _shifted(x: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Logical shift to the right (int64's own repeats the sign)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def hashed(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64's output function: 64 well mixed bits of each 64-bit word."""
    x = _shifted(x, 30).bitwise_xor_(x).mul_(FIRST)
    x = _shifted(x, 27).bitwise_xor_(x).mul_(SECOND)
    return _shifted(x, 31).bitwise_xor_(x)


def gumbel(seeds: Int[Tensor, " B"], start: int, stop: int, vocab_size: int) -> Float[Tensor, "B S V"]:
    """Float64 Gumbel noise of the codes at positions start..stop-1 of each image.

    Added to log probabilities, the largest sum is a draw from the distribution. Unlike a look-up in the cumulative
    distribution, a small change of the logits moves the draw with a probability of that size only, so that rounding
    (another batch size, another device) seldom changes an image even in bfloat16.
    """
    counters = torch.arange(start * vocab_size, stop * vocab_size, device=seeds.device)
    return gumbel_at(hashed(seeds), counters).view(len(seeds), stop - start, vocab_size)


def gumbel_at(keys: Int[Tensor, " B"], counters: Int[Tensor, " N"]) -> Float[Tensor, "B N"]:
    """That noise at places of each image's stream: position times codes, plus code.

    Args:
        keys: hashed seeds.
    """
    words = hashed(keys[:, None] + (counters + 1) * STEP)
    uniform = _shifted(words, 12).double().add_(0.5).mul_(2.0**-52)  # in (0, 1), both ends out of reach
    return uniform.log_().neg_().log_().neg_()
