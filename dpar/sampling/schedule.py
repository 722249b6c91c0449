"""What it would cost to let images wait for each other at patch boundaries: a simulation over real boundaries.

The sampler goes in lock-step: all images of a batch stand at the same token, and the patch transformer runs at once for
those that open a patch there. Since every image has T tokens, all end together and the batch is always full. The
alternative lets each image stand at its own token: images at a boundary wait until they are a share of the batch, the
others go on meanwhile, and an image that ends is replaced by the next (continuous batching). Waiting makes calls of the
patch transformer fewer and larger, and calls of everything else more and smaller.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

PARTS = ("entropy_model", "encoder", "patch_transformer", "decoder")


@dataclass(frozen=True)
class CallCost:
    """Seconds of one call of a part of the model: `fixed`, and `per_image` for each image that takes part."""

    fixed: float
    per_image: float


@dataclass(frozen=True)
class Scheduled:
    """What drawing all images took: seconds, and for each part the calls and the images in all of them together."""

    seconds: float
    calls: dict[str, int]
    images: dict[str, int]


def scheduled(starts: Bool[np.ndarray, "N T"], slots: int, share: float, costs: Mapping[str, CallCost]) -> Scheduled:
    """The cost of drawing N images, `slots` at a time.

    Args:
        starts: where the patches of each image begin; the first token begins one.
        slots: images in flight. The first `slots` enter together; each one that ends is replaced at once.
        share: of the images in flight that must stand at a boundary before the patch transformer runs for them; it
            also runs when all do. 0 runs it at once: lock-step. 1 waits for everyone: patch by patch.
        costs: of the `PARTS`.
    """
    images, tokens = starts.shape
    image = np.arange(min(slots, images))
    position = np.zeros(len(image), dtype=np.int64)
    waiting = np.ones(len(image), dtype=bool)
    entered = len(image)
    calls: Counter[str] = Counter()
    rows: Counter[str] = Counter()

    def run(part: str, count: int) -> None:
        calls[part] += 1
        rows[part] += count

    while len(image):
        at_boundary = int(waiting.sum())
        if at_boundary and at_boundary >= share * len(image):
            run("patch_transformer", at_boundary)
            waiting[:] = False
        going = ~waiting
        for part in ("decoder", "encoder", "entropy_model"):
            run(part, int(going.sum()))
        position[going] += 1
        ended = position == tokens
        if ended.any():
            room = np.flatnonzero(ended)[: images - entered]
            image[room] = entered + np.arange(len(room))
            position[room] = 0
            entered += len(room)
            left = position < tokens
            image, position, waiting, going = image[left], position[left], waiting[left], going[left]
        waiting |= going & starts[image, position]
    seconds = sum(calls[part] * costs[part].fixed + rows[part] * costs[part].per_image for part in PARTS)
    return Scheduled(seconds, dict(calls), dict(rows))
