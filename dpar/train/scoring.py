"""Entropies of stored codes (Eq. 3), one shard at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt16

from dpar.data.shards import CodeMetadata
from dpar.data.workers import reported
from dpar.device import full_float32, pad_batch
from dpar.errors import InputError
from dpar.experiment.settings import EntropyKind, EntropyModel, EntropyPrecision
from dpar.model.entropy import entropy_products, entropy_weights, token_entropies
from dpar.model.llamagen import LlamaGen
from dpar.train.objective import images_at_once
from dpar.weights import load_model, model_config


def scored(
    folder: Path,
    settings: EntropyModel,
    tokens: UInt16[np.ndarray, "N T"],
    metadata: CodeMetadata,
    where: Path,
    device: torch.device,
) -> Float32[np.ndarray, "N T"]:
    """Entropies of rows by the network in `folder`, an entropy model or a gate with these settings.

    Args:
        where: the codes come from, for messages.

    Raises:
        InputError: the network and the codes were not made for one another, or an entropy is not finite.
    """
    model = load_model(folder, settings.stored_as, device)
    metadata.expect(
        where,
        grid=model.config.grid,
        vocab_size=model.config.vocab_size,
        tokenizer=model_config(folder)["provenance"].get("tokenizer"),  # a published model knows of none
    )
    entropy = score(model, tokens, settings.kind, settings.precision)
    if not np.isfinite(entropy[:, 1:]).all():
        raise InputError(f"{folder} gives entropies that are not finite; train or import it again")
    return entropy


def score(
    model: LlamaGen, tokens: UInt16[np.ndarray, "N T"], kind: EntropyKind, precision: EntropyPrecision = "float32"
) -> Float32[np.ndarray, "N T"]:
    """Entropies of all rows.

    A row has the same entropies in a shard of any size, to the bit (on a CPU).

    Args:
        precision: of the products: others move decisions near the threshold, so that images are drawn with the same.
            In bfloat16 the weights of `model` are rounded.
    """
    device = model.output.weight.device
    model = entropy_weights(model, precision)
    size = images_at_once(model.config, device)

    def batches() -> Iterator[Float32[np.ndarray, "B T"]]:
        for first in range(0, len(tokens), size):
            batch = torch.from_numpy(tokens[first : first + size].astype(np.int64))
            with torch.inference_mode(), entropy_products(precision, device):
                entropy = token_entropies(model, pad_batch(batch, size).to(device), kind).float().cpu()
            yield entropy[: len(batch)].numpy()

    with full_float32():
        return np.concatenate(list(reported(batches(), len(tokens), "scored", size=size)))
