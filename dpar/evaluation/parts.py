"""A pass over many images that several processes share, and that goes on where a killed one stopped."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dpar.data.workers import reported
from dpar.evaluation.features import BATCH, outputs_of
from dpar.evaluation.image_sets import Pass
from dpar.files import replacing
from dpar.train.distributed import Ranks

PART = 32 * BATCH  # images; whole batches, so that an image is beside the same others whoever describes it


class Parts:
    """The finished parts of a pass, in a hidden folder beside the file that they will become."""

    def __init__(self, output: Path, identity: str, count: int):
        """Args:
        output: the file.
        identity: of all that decides the outputs; parts of another identity are thrown away.
        count: images in all.
        """
        self.folder = output.with_name(f".{output.stem}.{identity}.parts")
        self.spans = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
        for other in output.parent.glob(f".{output.stem}.*.parts"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)  # another rank may be at it too

    def missing(self) -> list[range]:
        """The numbers of the images of each part that nobody has finished."""
        return [span for span in self.spans if not self._path(span).exists()]

    def add(self, span: range, outputs: Sequence[Float[np.ndarray, "n _"]]) -> None:
        """Keeps a part: each output of the network for the images of these numbers."""
        with replacing(self._path(span)) as temporary, open(temporary, "wb") as file:
            np.savez(file, *outputs)

    def collected(self) -> list[Float[np.ndarray, "N _"]]:
        """Each output for all images, when no part is missing."""
        parts = []
        for span in self.spans:
            with np.load(self._path(span)) as stored:
                parts.append(list(stored.values()))
        return [np.concatenate(of_parts) for of_parts in zip(*parts, strict=True)]

    def remove(self) -> None:
        """Throws all parts away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, span: range) -> Path:
        return self.folder / f"{span.start:08d}.npz"


def add_missing(parts: Parts, whole: Pass, here: Ranks) -> None:
    """Computes what is missing, an equal share on each rank, and comes back when all of it is there."""
    missing = here.from_main(parts.missing())
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
                parts.add(span, [np.concatenate(of_batches) for of_batches in zip(*held, strict=True)])
                span, held = next(spans, range(0)), []
    here.at("the end of the pass", long=True)
    here.gather(None)
