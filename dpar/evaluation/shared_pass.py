"""A pass over many images that several processes share, and that goes on where a killed one stopped."""

import numpy as np
from jaxtyping import Float

from dpar.data.parts import Parts
from dpar.data.workers import reported
from dpar.evaluation.features import BATCH, outputs_of
from dpar.evaluation.passes import Pass
from dpar.train.distributed import Ranks

PART = 32 * BATCH  # images; whole batches, so that an image is next to the same others whoever describes it


def spans_of(whole: Pass) -> list[range]:
    """The numbers of the images of each part of a pass."""
    return [range(start, min(start + PART, len(whole))) for start in range(0, len(whole), PART)]


def gather_parts(parts: Parts, whole: Pass) -> list[Float[np.ndarray, "N _"]]:
    """Each output for all images, when no part is missing."""
    outputs = zip(*(parts.load(span).values() for span in spans_of(whole)), strict=True)
    return [np.concatenate(of_parts) for of_parts in outputs]


def add_missing(parts: Parts, whole: Pass, here: Ranks) -> None:
    """Computes what is missing, an equal share on each rank, and comes back when all of it is there."""
    present = parts.spans
    missing = here.from_main([span for span in spans_of(whole) if span not in present])
    share = [missing[i] for i in np.array_split(np.arange(len(missing)), here.size)[here.rank]]
    if share:
        numbers = np.concatenate(share)
        batches = whole.batches(numbers)
        if here.main:
            batches = reported(batches, len(numbers), "described", size=BATCH)
        spans, held = iter(share), []
        span = next(spans)
        for outputs in outputs_of(whole.extractor, batches):
            here.tick()
            held.append([output.float().cpu().numpy() for output in outputs])
            if sum(len(some[0]) for some in held) == len(span):
                outputs_of_part = [np.concatenate(of_batches) for of_batches in zip(*held, strict=True)]
                parts.add(span, **{f"output{i}": array for i, array in enumerate(outputs_of_part)})
                span, held = next(spans, range(0)), []
    here.at("the end of the pass", long=True)
    here.gather(None)
