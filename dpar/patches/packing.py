"""Images of different numbers of patches, end to end without padding (Section 4.1, "packed variant")."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dpar.device import to_device


@dataclass(frozen=True)
class PackedLengths:
    """The lengths of sequences that lie end to end, on the host and on the device.

    Attributes:
        lengths: positions of each sequence, on the host.
        cu_seqlens: int32, where each sequence begins, and at the end where the last one stops.
        longest: positions of the longest, on the host.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Int[Tensor, " ends"]
    longest: int

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str | None = None) -> "PackedLengths":
        """The description of sequences of these lengths."""
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), to_device(ends, device), max(lengths))

    @property
    def total(self) -> int:
        """Positions of all sequences together."""
        return sum(self.lengths)

    @property
    def sequence_ids(self) -> Int[Tensor, " N"]:
        """For each position, the number of its sequence."""
        lengths = self.cu_seqlens.diff()
        ids = torch.arange(len(self.lengths), device=lengths.device)
        return ids.repeat_interleave(lengths, output_size=self.total)


@dataclass(frozen=True)
class PatchLayout:
    """Positions of the patches of a batch in the packed sequence: row r is patch r, numbered through all images.

    Attributes:
        packed: patches per image.
        rows: for each token, the row of its patch.
        first: for each row, the raster index in its image of the patch's first token.
        last: the same of its last token.
    """

    packed: PackedLengths
    rows: Int[Tensor, "B T"]
    first: Int[Tensor, " M"]
    last: Int[Tensor, " M"]

    @classmethod
    def from_starts(cls, starts: Bool[Tensor, "B T"]) -> "PatchLayout":
        """The layout of images whose patches open at `starts`; the only wait for the device in a forward pass.

        There is no wait at all if `starts` lies on the host; then move the result with `to`.
        """
        batch, length = starts.shape
        counts, opened = torch.stack((starts.sum(1), starts[:, 0].long())).tolist()
        assert all(opened), "the first token of an image must open a patch"
        packed = PackedLengths.from_lengths(counts, starts.device)
        rows = starts.flatten().cumsum(0) - 1
        sizes = rows.new_zeros(packed.total).index_add_(0, rows, torch.ones_like(rows))
        ends = sizes.cumsum(0)
        return cls(packed, rows.view(batch, length), (ends - sizes) % length, (ends - 1) % length)

    def to(self, device: torch.device | str) -> "PatchLayout":
        """The same layout on another device."""
        tensors = (self.packed.cu_seqlens, self.rows, self.first, self.last)
        ends, *moved = (to_device(tensor, device) for tensor in tensors)
        return PatchLayout(replace(self.packed, cu_seqlens=ends), *moved)
