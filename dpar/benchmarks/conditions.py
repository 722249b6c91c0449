"""The conditions under which a number was measured: without them it is not a result."""

import os
from typing import Any

import torch

from dpar.tracking.environment import git_commit, processor, versions


def conditions(device: torch.device) -> dict[str, Any]:
    """The code, the packages and the machine; a benchmark adds its shapes and precision."""
    return {
        "commit": commit_label(*git_commit()),
        "versions": versions(),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def commit_label(commit: str | None, changed: bool) -> str | None:
    """The commit that `git_commit` found, in words; None outside a git checkout."""
    return commit and commit + (" with changes" if changed else "")
