"""A distilled gate: a LlamaGen with one output that predicts the entropy model's entropy.

At 16,384 codes the head and the softmax behind it are most of what a small entropy model costs at each token; here the
head is one row.

Deviation: in Algorithm 2 the entropies are those of the network that placed the patches of training (Eq. 3).
"""

import math

from jaxtyping import Float
from torch import Tensor

from dpar.model.layers import Head
from dpar.model.llamagen import LlamaGen, LlamaGenConfig


class EntropyRegressorConfig(LlamaGenConfig):
    """The sizes; there are no classes, since the entropy model sees none."""

    num_classes: None = None

    @property
    def outputs(self) -> int:
        """One number: the entropy."""
        return 1


class EntropyHead(Head):
    """Entropy in nats, fp32 or wider; ln V at first, the entropy of a uniform distribution."""

    def __init__(self, width: int, vocab_size: int):
        super().__init__(width, 1)
        self.most = math.log(vocab_size)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... 1"]:
        return self.most - super().forward(x)


class EntropyRegressor(LlamaGen):
    """Entropies of x_1 .. x_{T-1} in nats, as (B, T-1, 1), from x_0 .. x_{T-2}; learned from the entropy model's."""

    Config = EntropyRegressorConfig

    def __init__(self, config: EntropyRegressorConfig):
        super().__init__(config)
        self.output = EntropyHead(config.width, config.vocab_size)
