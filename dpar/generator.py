"""Pictures from Python as `dpar sample` draws them: `dpar.Generator.from_pretrained(folder)([3, 7])`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from dpar.config import Patchify
from dpar.device import default_device
from dpar.errors import InputError
from dpar.sampling.memory import in_pieces
from dpar.sampling.networks import Networks, load_networks
from dpar.sampling.noise import image_seed
from dpar.weights import CONFIG, model_config

BATCH = 32  # images


class Generator:
    """A trained DPAR or LlamaGen with all it needs to draw: the patches of its training, and the other networks.

    Args:
        patchify: where patches begin; None for a model without patches.
        threshold: E_Th in nats, where patches depend on entropies.
    """

    def __init__(self, networks: Networks, patchify: Patchify | None, threshold: float | None):
        self.networks, self.patchify, self.threshold = networks, patchify, threshold

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, precision: str = "float32", device: torch.device | str | None = None
    ) -> "Generator":
        """What draws from the model in `folder`: one that `dpar export` wrote, or a model of a results folder.

        Args:
            precision: `float32` or `bfloat16`, of the model.
            device: this process's GPU, or the CPU, by default.

        Raises:
            InputError: a network is missing, damaged or was not made for the others. Nothing is ever downloaded.
        """
        folder = Path(folder)
        provenance = model_config(folder)["provenance"]
        patches = provenance.get("patchify")
        patchify = None if patches is None else Patchify.model_validate(patches)
        gated = patchify is not None and patchify.is_dynamic
        networks = load_networks(
            folder,
            beside(folder, "entropy_model") if gated else None,
            beside(folder, "tokenizer"),
            precision=precision,
            device=default_device() if device is None else torch.device(device),
        )
        return cls(networks, patchify, provenance.get("threshold"))

    @property
    def side(self) -> int:
        """Pixels of a side of a picture."""
        return self.networks.model.config.grid[0] * self.networks.tokenizer.config.downsample

    def __call__(
        self, labels: Sequence[int], *, seed: int = 0, cfg_scale: float = 2.0, **how: Any
    ) -> UInt8[np.ndarray, "N side side 3"]:
        """A picture of each class in `labels`, as bytes; image i of a seed is always the same.

        Args:
            cfg_scale: of guidance; 1 is none.
            how: other settings of `dpar.sampling.sampler.sample`, such as `temperature`, `top_k` and `top_p`.

        Raises:
            InputError: a label or a setting is out of range, or not even one image fits the memory.
        """
        if not len(labels):
            return np.empty((0, self.side, self.side, 3), dtype=np.uint8)
        try:
            classes = np.array(labels, dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"labels are whole numbers, one a picture, not {labels!r} ({error})") from None
        seeds = np.array([image_seed(seed, image) for image in range(len(classes))])
        prefix = how.pop("prefix", None)
        how = {"patchify": self.patchify, "threshold": self.threshold, "cfg_scale": cfg_scale, **how}

        def draw(first: int, last: int) -> UInt8[np.ndarray, "n side side 3"]:
            begun = None if prefix is None else prefix[first:last]
            result = self.networks.draw(classes[first:last], seeds[first:last], prefix=begun, **how)
            return self.networks.pixels(result.tokens, self.side)

        return np.concatenate(list(in_pieces(draw, 0, len(classes), BATCH)))


def beside(model: Path, name: str) -> Path:
    """The folder of the network `name` that belongs to a model folder: in it, or beside the models of its results.

    Raises:
        InputError: it is not there.
    """
    inside = model.resolve()
    for folder in (inside, *inside.parents):
        if (folder / name / CONFIG).exists():
            return folder / name
    flag = "gate" if name.startswith("gates/") else name.replace("_", "-")
    raise InputError(
        f"there is no {name} folder in {model}, beside it or above it; `dpar export` puts all networks into one "
        f"folder, and `dpar sample` takes --{flag} DIR, the one of the model's experiment"
    )
