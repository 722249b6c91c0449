"""The networks of an experiment as far as cost goes: their sizes, with shapes and without numbers."""

import math
from functools import cache

import torch

from dpar.experiment.cells import ModelCell, SampleCell
from dpar.experiment.settings import Experiment, Patchify, Transformer, gate_folder
from dpar.model import flops
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.llamagen import LlamaGenConfig
from dpar.model.variants import build_entropy_model, entropy_model_config, model_config
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
