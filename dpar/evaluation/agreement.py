"""Agreement of two sets of patch boundaries."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from dpar.patches.rule import PatchRule


@dataclass(frozen=True)
class Agreement:
    """Agreement of patch starts under the entropies of two networks, where no rule decides for both.

    The first two tokens, and those that begin a row where rows begin patches, are left out: all networks agree there.
    """

    tokens: int  # that were compared
    both: int  # starts in both
    expected: int  # starts in the one that is copied
    found: int  # starts in the copy

    @classmethod
    def of(cls, expected: Bool[Tensor, "B T"], found: Bool[Tensor, "B T"], rule: PatchRule) -> "Agreement":
        """The agreement of `found` with `expected` over all images, both under `rule` but for the threshold."""
        free = ~rule.forced(torch.arange(expected.shape[1], device=expected.device))
        expected, found = expected[:, free], found[:, free]
        counts = ((expected & found).sum(), expected.sum(), found.sum())
        return cls(expected.numel(), *(int(count) for count in counts))

    @property
    def share(self) -> float:
        """The share of tokens that open a patch in both or in neither."""
        return 1 - (self.expected + self.found - 2 * self.both) / self.tokens

    @property
    def chance(self) -> float:
        """`share` expected by chance: as many starts at independent, random positions."""
        p, q = self.expected / self.tokens, self.found / self.tokens
        return p * q + (1 - p) * (1 - q)

    @property
    def precision(self) -> float | None:
        """The share of the copy's starts that are starts; None if it has none."""
        return self.both / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """The share of starts that the copy has; None if there are none."""
        return self.both / self.expected if self.expected else None
