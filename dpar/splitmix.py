"""SplitMix64, the counter-based random function of all draws: order, views and crops of images, noise of samples.

The n-th word of a stream is `splitmix64(key + n * STEP)`, so that any one can be had without the others. It is written
out, so that runs outlive changes in a library's generators. PyTorch has no unsigned words: all are int64 of those bits.
"""

from jaxtyping import Int
from torch import Tensor


def signed(word: int) -> int:
    """A 64-bit word as the int64 with the same bits."""
    return word - (1 << 64) if word >> 63 else word


STEP = signed(0x9E3779B97F4A7C15)
FIRST = signed(0xBF58476D1CE4E5B9)
SECOND = signed(0x94D049BB133111EB)


def shifted(x: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Logical shift to the right (int64's own repeats the sign)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def splitmix64(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """64 well mixed bits of each 64-bit word."""
    x = shifted(x, 30).bitwise_xor_(x).mul_(FIRST)
    x = shifted(x, 27).bitwise_xor_(x).mul_(SECOND)
    return shifted(x, 31).bitwise_xor_(x)
