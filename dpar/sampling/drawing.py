"""Images of a request: drawn in batches that fit the memory, and decoded to pixels."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from dpar.device import full_float32
from dpar.memory import in_pieces
from dpar.patches.rule import PatchRule
from dpar.sampling.captured import GraphStore
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import Networks
from dpar.sampling.request import Request
from dpar.sampling.sampler import SampleResult, sample

BATCH = 32  # images


class Drawn(NamedTuple):
    """Consecutive images of a request, the first of which is number `start` in it, and how many patches each has.

    Where these begin, and the entropies in nats, if any were asked for, are known of a batch and not kept with samples.
    """

    start: int
    images: UInt8[np.ndarray, "n side side 3"]
    patches: Int[np.ndarray, " n"]
    starts: Bool[np.ndarray, "n T"] | None = None
    entropy: Float[np.ndarray, "n T"] | None = None

    @property
    def stop(self) -> int:
        """One past the number of the last image."""
        return self.start + len(self.images)


@dataclass(frozen=True)
class ImageSampler:
    """A trained model with its networks, patch rule and sampling settings.

    Attributes:
        rule: where patches begin; None for a model without patches.
        settings: guidance, and how codes are drawn.
        batch_size: images that are drawn together, where the memory has room for so many.
        resolution: pixels of a side, to which images are resized; None for those that the model draws.
        store: where a GPU keeps static tensors and graphs of a batch for the next.
    """

    networks: Networks
    rule: PatchRule | None
    settings: DrawSettings
    batch_size: int = BATCH
    resolution: int | None = None
    store: GraphStore = field(default_factory=GraphStore, compare=False, repr=False)

    @property
    def side(self) -> int:
        """Side of an image, pixels."""
        return self.resolution or self.networks.side

    def draw(self, request: Request) -> SampleResult:
        """Tokens of all images of `request` at once."""
        device = self.networks.device
        labels, seeds = (torch.from_numpy(array).to(device) for array in (request.labels, request.seeds))
        with full_float32():
            return sample(
                self.networks.model,
                self.networks.entropy_model,
                labels=labels,
                seeds=seeds,
                rule=self.rule,
                settings=replace(self.settings, entropy_precision=self.networks.entropy_precision),
                prefix=request.prefix,
                store=self.store,
            )

    def batches(
        self, request: Request, *, done: int = 0, keep: Callable[[Drawn], object] | None = None
    ) -> Iterator[Drawn]:
        """The images of `request` from number `done` on, batch by batch.

        While a batch is drawn, the batch before it is decoded and saved, which hides the decoder and the disk
        where a GPU waits for Python between kernels.

        Args:
            keep: called with each batch, even with the last one before an error or a signal ends this.

        Raises:
            InputError: one image does not fit the memory, or as `dpar.sampling.sampler.sample`.
        """

        def draw(first: int, last: int) -> tuple[int, SampleResult]:
            return first, self.draw(request[first:last])

        def finish(first: int, result: SampleResult) -> Drawn:
            images = self.networks.pixels(result.tokens, self.side)
            starts = result.starts.cpu().numpy()
            entropy = None if result.entropy is None else result.entropy.cpu().numpy()
            drawn = Drawn(first, images, starts.sum(1), starts, entropy)
            if keep is not None:
                keep(drawn)
            return drawn

        # precision is a setting of the process: set around both threads, neither takes it from the other
        with full_float32(), ThreadPoolExecutor(1) as finisher:
            pending: list[Future[Drawn]] = []
            for first, result in in_pieces(draw, done, len(request), self.batch_size):
                pending.append(finisher.submit(finish, first, result))
                if len(pending) > 1:
                    yield pending.pop(0).result()
            for last in pending:
                yield last.result()

    def images(self, request: Request) -> Drawn:
        """All images of `request`, of which there is at least one."""
        _, images, patches, *_ = zip(*self.batches(request), strict=True)
        return Drawn(0, np.concatenate(images), np.concatenate(patches))
