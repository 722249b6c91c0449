"""The speed of Algorithm 2 as it is written, most of it from a few of its positions: it takes minutes per image."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpar.benchmarks.timing import say, timed
from dpar.model.dpar import DPAR
from dpar.patches.rule import PatchRule
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.literal import LiteralDPAR, literal, literal_entropy
from dpar.sampling.networks import Networks
from dpar.sampling.sampler import SampleResult

PIECES = 4  # of a sequence, one position of each being timed


def measure_literal(
    networks: Networks,
    drawn: SampleResult,
    request: Mapping[str, Tensor],
    rule: PatchRule,
    settings: DrawSettings,
    *,
    whole: bool,
) -> dict[str, Any]:
    """Images per second of Algorithm 2 as written, for the batch `drawn`: from PIECES of its positions.

    One position in the middle of each of PIECES equal pieces of the sequence is timed, and its time stands for all
    positions of the piece at which the patch transformer runs (at others, which are few, nothing is charged).

    Args:
        request: labels and seeds of the batch.
        whole: whether it is also timed from its first token to its last.
    """
    model, entropy_model = networks.model, networks.entropy_model
    assert isinstance(model, DPAR)
    assert entropy_model is not None
    tokens, starts, batch = drawn.tokens, drawn.starts, len(drawn.tokens)
    fires = starts.any(0).cpu().numpy()
    branches = [request["labels"]]
    if settings.cfg_scale != 1:
        branches.append(torch.full_like(request["labels"], model.null_label))

    def step(t: int) -> None:
        literal_entropy(entropy_model, tokens[:, :t])
        for labels in branches:
            LiteralDPAR(model, labels).logits(tokens[:, :t], starts[:, : t + 1])

    estimate = 0.0
    for piece in np.array_split(np.flatnonzero(fires), PIECES):
        middle = int(piece[len(piece) // 2])
        say(f"literal, token {middle}")
        with torch.inference_mode():
            estimate += len(piece) * timed(lambda t=middle: step(t), networks.device)[0]
    seconds = estimate
    if whole:
        say("literal, whole")
        steps = literal(model, entropy_model, **request, rule=rule, settings=settings)
        seconds, _ = timed(lambda: list(steps), networks.device)
    return {
        "batch": batch,
        "patch_transformer_calls": int(fires.sum()),
        "patch_transformer_rows_per_call": len(branches) * batch,
        "estimated_images_per_s": batch / estimate,
        "images_per_s": batch / seconds,
    }
