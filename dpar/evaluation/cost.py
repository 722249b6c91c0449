"""The networks of an experiment as far as cost goes: their sizes, with shapes and without numbers."""

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch

from dpar.evaluation.roofline import Card, Drawing, token_cost
from dpar.experiment.cells import ModelCell, SampleCell
from dpar.experiment.settings import Experiment, Patchify, Transformer, gate_folder
from dpar.model import flops
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.llamagen import LlamaGenConfig
from dpar.model.variants import build_entropy_model, entropy_model_config, model_config
from dpar.patches.rule import PatchRule
from dpar.sampling.guidance import guidance_scales, guided_tokens


def network(experiment: Experiment, transformer: Transformer) -> LlamaGenConfig | DPARConfig:
    """The sizes of `transformer` on this experiment's tokens and classes."""
    return model_config(
        transformer,
        vocab_size=experiment.tokenizer.vocab_size,
        grid=experiment.grid,
        num_classes=experiment.images.num_classes,
    )


def parameters(experiment: Experiment, transformer: Transformer) -> int:
    """Weights of `transformer` on this experiment's tokens and classes."""
    return parameters_of(network(experiment, transformer))  # type: ignore[arg-type]  # frozen: it has a hash


@cache
def parameters_of(config: LlamaGenConfig | DPARConfig) -> int:
    """Weights of a network of these sizes."""
    with torch.device("meta"):
        model = DPAR(config) if isinstance(config, DPARConfig) else build_entropy_model(config)
    return sum(p.numel() for p in model.parameters())


def entropy_network(experiment: Experiment, gate: str | None = None) -> LlamaGenConfig:
    """The sizes of the gate of that name; of the entropy model for None."""
    return entropy_model_config(
        experiment.network(gate_folder(gate)),
        vocab_size=experiment.tokenizer.vocab_size,
        grid=experiment.grid,
        num_classes=experiment.images.num_classes,
    )


def boundary_network(
    experiment: Experiment, transformer: Transformer, patchify: Patchify, gate: str | None = None
) -> LlamaGenConfig | None:
    """The sizes of the network that places these patches: the gate, or the entropy model; None if none does."""
    return entropy_network(experiment, gate) if transformer.is_dpar and patchify.is_dynamic else None


def guided_share(tokens: int, cfg_scale: float, cfg_interval: tuple[float, float]) -> float:
    """The share of an image's tokens at which guidance computes a second branch."""
    return guided_tokens(guidance_scales(tokens, cfg_scale, cfg_interval)) / tokens


def sampling_gmacs(
    experiment: Experiment, model: ModelCell, sample: SampleCell, patches: float | None
) -> flops.Number | None:
    """1e9 MACs of drawing one image, with attention, guidance and what places the patches; None without patches.

    Args:
        patches: M, the mean over images; LlamaGen has none.
    """
    if model.transformer.is_dpar and patches is None:
        return None
    return flops.sampling_gmacs(
        network(experiment, model.transformer),
        patches if model.transformer.is_dpar else None,
        entropy_model=boundary_network(experiment, model.transformer, sample.patchify, sample.gate),
        guided=guided_share(math.prod(experiment.grid), sample.sampling.cfg_scale, sample.sampling.cfg_interval),
    )


class SampleSet(NamedTuple):
    """Images that are drawn on a GPU: how many, with what, how many at a time, and their mean patches."""

    images: int
    drawing: Drawing
    batch: int
    guided: float  # share of the tokens at which both branches are run
    patches: float | None

    def seconds(self, card: Card) -> float:
        """Seconds of a GPU by its roofline, in captured graphs."""
        guided, alone = (
            token_cost(replace(self.drawing, guided=both), self.batch, card, self.patches).captured if share else 0.0
            for both, share in ((True, self.guided), (False, 1 - self.guided))
        )
        tokens = self.drawing.model.tokens * self.images / self.batch
        return tokens * (self.guided * guided + (1 - self.guided) * alone)


def sample_set(experiment: Experiment, model: ModelCell, sample: SampleCell, patches: float | None) -> SampleSet:
    """The images of a set of samples; the arguments are those of `sampling_gmacs`."""
    how, tokens, width = sample.sampling, math.prod(experiment.grid), experiment.grid[1]
    patched = model.transformer.is_dpar
    drawing = Drawing(
        network(experiment, model.transformer),
        boundary_network(experiment, model.transformer, sample.patchify, sample.gate),
        experiment.network(gate_folder(sample.gate)).precision,
        rule=PatchRule.of(sample.patchify, 0.0, width) if patched else None,
        precision=how.precision,
    )
    share = guided_share(tokens, how.cfg_scale, how.cfg_interval)
    return SampleSet(how.num_images, drawing, how.batch_size, share, patches if patched else None)
