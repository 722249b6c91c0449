"""The codebook: latents to indices of their nearest rows, and back (LlamaGen's l2-normalised VQ)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

# Distances are computed for this many latents at once: 16384 x 16384 float32 is 1 GiB.
ROWS_AT_ONCE = 16384


class Quantized(NamedTuple):
    """A quantized latent grid, its codes, and its losses."""

    rows: Float[Tensor, "B C h w"]
    codes: Int[Tensor, "B h w"]
    latents: Float[Tensor, "B C h w"]
    codebook_loss: Float[Tensor, ""]
    commitment_loss: Float[Tensor, ""]


def nearest(latents: Float[Tensor, "N C"], codebook: Float[Tensor, "V C"]) -> Int[Tensor, " N"]:
    """Index of the codebook row with the least squared distance to each latent; the first of equals."""
    squares = codebook.square().sum(1)  # a latent's own square is the same for every row
    parts = (torch.addmm(squares, part, codebook.T, alpha=-2) for part in latents.split(ROWS_AT_ONCE))
    return first_equals(codebook)[torch.cat([torch.argmin(distances, dim=1) for distances in parts])]


def first_equals(codebook: Float[Tensor, "V C"]) -> Int[Tensor, " V"]:
    """The first equal row of each row: a matrix product may round the distances of equal rows differently."""
    # in the order of their rows, equal ones next to each other and the first in front; `unique` would wait for a GPU
    order = torch.arange(len(codebook), device=codebook.device)
    for column in codebook.T:
        order = order[column[order].argsort(stable=True)]
    rows = codebook[order]
    kind = F.pad((rows[1:] != rows[:-1]).any(1).cumsum(0), (1, 0))
    firsts = order.scatter_reduce(0, kind, order, "amin", include_self=False)
    return torch.empty_like(order).scatter_(0, order, firsts[kind])


class Quantizer(nn.Module):
    """`vocab_size` rows of `code_dim` numbers; latents and rows have length 1 at every look-up."""

    def __init__(self, vocab_size: int, code_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, code_dim)
        with torch.no_grad():
            nn.init.uniform_(self.embedding.weight, -1 / vocab_size, 1 / vocab_size)
            self.embedding.weight.copy_(self.codebook())

    def codebook(self) -> Float[Tensor, "V C"]:
        """The rows, each divided by its length."""
        return F.normalize(self.embedding.weight, dim=-1)

    def encode(self, latents: Float[Tensor, "B C h w"]) -> Int[Tensor, "B h w"]:
        """The code of each cell."""
        flat = F.normalize(latents.movedim(1, -1), dim=-1)
        return nearest(flat.flatten(0, -2), self.codebook()).view(flat.shape[:-1])

    def decode(self, codes: Int[Tensor, "B h w"]) -> Float[Tensor, "B C h w"]:
        """The normalised row of each code."""
        return F.embedding(codes, self.codebook()).movedim(-1, 1)

    def forward(self, latents: Float[Tensor, "B C h w"]) -> Quantized:
        """Rows in place of latents; the gradient of the rows goes straight through to the latents."""
        latents = F.normalize(latents, dim=1)
        with torch.no_grad():
            flat = latents.movedim(1, -1)
            codes = nearest(flat.flatten(0, -2), self.codebook()).view(flat.shape[:-1])
        rows = self.decode(codes)
        return Quantized(
            rows=latents + (rows - latents).detach(),
            codes=codes,
            latents=latents.detach(),
            codebook_loss=F.mse_loss(rows, latents.detach()),
            commitment_loss=F.mse_loss(latents, rows.detach()),
        )
