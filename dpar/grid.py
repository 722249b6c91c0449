"""Which models a run trains and which samples it draws: every cell of every table, each once."""

from collections.abc import Iterable
from dataclasses import dataclass

from dpar.config import Experiment, Patchify, Sampling, Training, Transformer
from dpar.errors import InputError


@dataclass(frozen=True)
class ModelCell:
    """One training: its name in paths and everything that decides its weights."""

    slug: str
    transformer: Transformer
    patchify: Patchify
    training: Training

    @property
    def milestones(self) -> tuple[str, ...]:
        """Names of the kept states in order, such as `epoch50`; the last is the end of the training."""
        return tuple(f"{self.training.unit}{n}" for n in (*self.training.milestones, self.training.length))


@dataclass(frozen=True)
class SampleCell:
    """One set of samples: a state of a model and how images are drawn from it."""

    slug: str
    model: str
    milestone: str
    sampling: Sampling
    patchify: Patchify


@dataclass(frozen=True)
class TableRow:
    """One row of a table: what varies, as the table prints it, and the cell that fills it."""

    values: dict[str, str | float | int | None]
    sample: SampleCell


def _same(cells: dict, slug: str, cell) -> None:
    if cells.setdefault(slug, cell) != cell:
        raise InputError(f"two different cells would share the name {slug!r}; rename one of the models")
