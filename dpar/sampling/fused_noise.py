"""The noise of a token in one kernel of a GPU, where PyTorch can compile one from its source.

By PyTorch's own operations it is some 25 passes over (images, codes) in int64 and float64, which take longer than all
products of a DPAR-B. The kernel has the arithmetic of `dpar.sampling.noise`, and serves after a trial against it.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.sampling.noise import gumbel_at
from dpar.splitmix import splitmix64

SOURCE = """
template <typename T> T gumbel_bits(T key, T counter) {
  unsigned long long x = (unsigned long long)key + ((unsigned long long)counter + 1ULL) * 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  x = x ^ (x >> 31);
  double uniform = ((double)(x >> 12) + 0.5) * 2.220446049250313e-16;
  return __double_as_longlong(-log(-log(uniform)));
}
"""
"""The bits of the float64 noise of one code, as int64: PyTorch wants inputs and output of one type."""

logger = logging.getLogger(__name__)


@cache
def _kernel() -> Callable[[Tensor, Tensor], Tensor]:
    from torch.cuda.jiterator import _create_jit_fn

    return _create_jit_fn(SOURCE)


@torch.library.custom_op("dpar::fused_gumbel", mutates_args=())
def fused_gumbel(keys: Tensor, counters: Tensor) -> Tensor:
    """`dpar.sampling.noise.gumbel_at` of the same arguments, on a GPU for which `fuses_noise`."""
    return _kernel()(keys[:, None], counters).view(torch.float64)


@fused_gumbel.register_fake
def _(keys: Tensor, counters: Tensor) -> Tensor:
    return keys.new_empty(len(keys), len(counters), dtype=torch.float64)


@cache
def fuses_noise(device: torch.device) -> bool:
    """Whether noise is one kernel on `device`, by trial; logged once where it is not."""
    if device.type != "cuda":
        return False
    keys = splitmix64(torch.tensor([0, -5, 2**62, -(2**63)])).to(device)
    counters = torch.arange(0, 2**22, 4099).to(device)
    try:
        found = _kernel()(keys[:, None], counters).view(torch.float64)
        same = torch.allclose(found, gumbel_at(keys, counters), rtol=1e-13, atol=1e-13)
        reason = None if same else "it gives other numbers"
    except (RuntimeError, AssertionError, AttributeError, ImportError) as error:  # a beta interface
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason is not None:
        logger.info("noise is made by several kernels: %s", reason)
    return reason is None


def noise_at(keys: Int[Tensor, " B"], counters: Int[Tensor, " N"], *, fused: bool) -> Float[Tensor, "B N"]:
    """`dpar.sampling.noise.gumbel_at`, in one kernel if `fused`."""
    return fused_gumbel(keys, counters) if fused else gumbel_at(keys, counters)
