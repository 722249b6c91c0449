"""Memory of a training step by formula, compared with what the GPU has before anything is computed."""

from functools import partial

import torch

from dpar.errors import InputError
from dpar.experiment.settings import Training
from dpar.model.dpar import DPARConfig
from dpar.model.layers import hidden_width
from dpar.model.llamagen import TransformerConfig
from dpar.train.distributed import Ranks
from dpar.train.task import Task

GIB = 2**30
ROWS = 256  # of the store, whose patches are counted
# Bytes that a layer keeps of each row for its backward pass, per channel and per hidden channel, without two masks of
# dropout (a byte per channel); tests count them from the tensors that autograd saves.
KEPT = {"bfloat16": (26, 8), "float32": (40, 16)}
# Bytes per logit: in float32, its log probability and both gradients; in bf16 also the product's.
PER_LOGIT = {"bfloat16": 14, "float32": 12}
RESERVE = 0.05
"""Share of the memory for CUDA itself, buffers of gradients and gaps between tensors."""


def rows_of_layers(config: TransformerConfig, images: int, patches: float) -> float:
    """Rows that pass through all transformer layers: of tokens, and of patches in a DPAR's patch transformer."""
    if not isinstance(config, DPARConfig):
        return config.layers * images * config.tokens
    tokens = (config.encoder_layers + config.decoder_layers) * config.tokens
    return images * (tokens + config.layers * patches)


def step_bytes(
    config: TransformerConfig,
    parameters: int,
    images: int,
    patches: float,
    *,
    precision: str,
    recomputed: bool,
    average: bool,
    shards: int = 1,
) -> float:
    """Bytes of weights, gradients, moments, average, kept activations and logits in a step.

    Compiled layers keep less. Everything but the activations of layers and the logits is neglected.

    Args:
        images: of a micro-batch on this GPU.
        patches: per image (M).
        recomputed: whether layers keep their inputs alone (activation checkpointing).
        average: whether a moving average is kept.
        shards: GPUs over which weights, gradients and moments are divided.
    """
    state = parameters * (16 + 4 * average) / shards
    per_channel, per_hidden = KEPT[precision]
    dropout = 2 * (config.dropout > 0)
    kept = (per_channel + dropout) * config.width + per_hidden * hidden_width(config.width)
    rows = rows_of_layers(config, images, patches)
    # recomputed: the inputs of all layers, in float32, and all of one layer of all tokens
    activations = rows * 4 * config.width + images * config.tokens * kept if recomputed else rows * kept
    return state + activations + images * config.tokens * config.outputs * PER_LOGIT[precision]


def training_bytes(
    config: TransformerConfig,
    parameters: int,
    patches: float,
    training: Training,
    *,
    gpus: int = 1,
    accumulate: int | None = None,
    recomputed: bool = False,
) -> float:
    """`step_bytes` of a training on each of its GPUs.

    Args:
        patches: per image (M).
        gpus: over which a batch is divided.
        accumulate: micro-batches, instead of the training's.
        recomputed: whether layers are computed again even where the training does not say so.
    """
    above, divided = training.activation_checkpointing_above, training.fsdp_above
    return step_bytes(
        config,
        parameters,
        training.batch_size // gpus // (accumulate or training.accumulate),
        patches,
        precision=training.precision,
        recomputed=recomputed or (above is not None and parameters > above),
        average=training.ema is not None,
        shards=gpus if divided is not None and parameters > divided else 1,
    )


def patches_per_image(task: Task) -> float:
    """The mean number of patches of some images of the store; 0 without patches."""
    if task.rule is None:
        return 0.0
    entropy = task.train.entropy
    length = task.model.config.tokens
    rows = torch.zeros(1, length) if entropy is None else torch.tensor(entropy.reshape(-1, length)[:ROWS])
    return task.rule.starts(rows).sum(1).double().mean().item()


def check_fits(task: Task, ranks: Ranks) -> None:
    """Refuses a training whose step does not fit the memory of this rank's GPU; on a CPU nothing is known.

    Raises:
        InputError: it says what fits: more micro-batches, layers that are computed again, or fewer images.
    """
    if ranks.device.type != "cuda":
        return
    training, model = task.training, task.model
    parameters, patches = sum(p.numel() for p in model.parameters()), patches_per_image(task)
    room = torch.cuda.mem_get_info(ranks.device)[1] * (1 - RESERVE)

    needed = partial(training_bytes, model.config, parameters, patches, training, gpus=ranks.size)
    needs = needed()
    if needs <= room:
        return
    share = training.batch_size // ranks.size
    fitting = [k for k in range(training.accumulate + 1, share + 1) if share % k == 0 and needed(accumulate=k) <= room]
    cures = [f"`accumulate: {fitting[0]}`"] if fitting else []
    if needed(recomputed=True) <= room:
        cures.append("`activation_checkpointing_above: 0`, which computes layers twice")
    if not cures:
        cures.append("a smaller model, or `fsdp_above: 0` on more GPUs")
    card = torch.cuda.get_device_name(ranks.device)
    raise InputError(
        f"a step needs about {needs / GIB:.0f} GiB ({share // training.accumulate} images at a time, "
        f"{parameters / 1e6:.0f} M parameters), {card} has {room / GIB:.0f} GiB for it; set {' or '.join(cures)}"
    )
