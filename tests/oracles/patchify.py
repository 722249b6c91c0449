"""Algorithm 3 and its ablations as the paper writes them: one image, one token after another."""

import math
from decimal import Decimal


def patches(
    entropy: list[float], *, threshold: float, max_length: int | None, grid_width: int, row_boundary: bool
) -> list[list[int]]:
    """The patches of one image, each a list of its tokens' positions (Algorithm 3; the numbers are its lines)."""
    finished = [[0]]  # 3
    patch = [1]  # 4
    if len(entropy) == 1:
        return finished
    for i in range(2, len(entropy)):  # 5
        at_row_start = row_boundary and i % grid_width == 0
        if entropy[i] <= threshold and len(patch) < (max_length or math.inf) and not at_row_start:  # 7
            patch.append(i)  # 8
        else:
            finished.append(patch)  # 10
            patch = [i]  # 11
    finished.append(patch)  # 14
    return finished  # 15


def static_patches(tokens: int, patch_length: float) -> list[list[int]]:
    """The patches of one image when token t belongs to patch floor(t / P), P being the decimal number as written."""
    members: dict[int, list[int]] = {}
    for t in range(tokens):
        members.setdefault(int(Decimal(t) // Decimal(str(patch_length))), []).append(t)
    return [members[m] for m in sorted(members)]


def starts(patches_of_image: list[list[int]]) -> list[bool]:
    """Whether each token is the first of its patch."""
    return [t == patch[0] for patch in patches_of_image for t in patch]
