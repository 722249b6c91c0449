"""Rank of this process, if this program's own launcher started it."""

import os
from dataclasses import dataclass

LAUNCHER = "DPAR_LAUNCHER"
"""Names the process that starts the ranks: a variable that outlived it, or came from further up, counts for nothing."""


@dataclass(frozen=True)
class Place:
    """Rank of a process among those started together.

    Attributes:
        rank: among all.
        local: of those on this node.
        size: of all.
    """

    rank: int
    local: int
    size: int


def launched() -> Place | None:
    """This process's place if its parent is `dpar.workflow.torchrun`, else None.

    RANK, WORLD_SIZE and LOCAL_RANK are left in the environment by other programs too (a job that this one runs in, a
    notebook, mpirun): obeying those would wait for processes that nobody started, or write nothing.
    """
    if os.environ.get(LAUNCHER) != str(os.getppid()):
        return None
    rank, local, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return Place(rank, local, size)
