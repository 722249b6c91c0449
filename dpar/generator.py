"""Images from Python as `dpar sample` draws them: `dpar.Generator.from_pretrained(folder)([3, 7])`."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dpar.data.classes import Classes
from dpar.device import default_device
from dpar.errors import InputError
from dpar.experiment.settings import Patchify
from dpar.files import fields_of
from dpar.patches.rule import PatchRule
from dpar.sampling.captured import GraphStore
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import Networks, gate_threshold, load_networks
from dpar.sampling.request import Request
from dpar.tracking.makers import check_recorded
from dpar.weights import CONFIG, model_config
from dpar.workflow import jobs


class Generator:
    """A trained DPAR or LlamaGen with the other networks and the patch rule of its training, ready to draw.

    Args:
        rule: where patches begin; None for a model without patches.
        classes: that the model draws.
    """

    def __init__(self, networks: Networks, rule: PatchRule | None, classes: Classes):
        self.networks, self.rule, self.classes = networks, rule, classes
        self._store = GraphStore()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, precision: str = "float32", device: torch.device | str | None = None
    ) -> "Generator":
        """The generator of the model in `folder`: one that `dpar export` wrote, or a model of a results folder.

        Args:
            precision: `float32` or `bfloat16`, of the model.
            device: this process's GPU, or the CPU, by default.

        Raises:
            InputError: a network is missing, damaged or was not made for the others. Nothing is ever downloaded.
        """
        folder = Path(folder)
        with fields_of(folder / CONFIG):
            origin, classes = find_origin(folder), Classes.of_model(folder, model_config(folder))
        networks = load_networks(
            folder,
            origin.boundary_network,
            find_network(folder, "tokenizer"),
            precision=precision,
            device=default_device() if device is None else torch.device(device),
        )
        return cls(networks, origin.rule, classes)

    @property
    def side(self) -> int:
        """Side of an image, pixels."""
        return self.networks.side

    def __call__(
        self,
        labels: Sequence[int | str],
        *,
        seed: int = 0,
        rule: PatchRule | None = None,
        cfg_scale: float = 2.0,
        cfg_interval: tuple[float, float] = (0.0, 1.0),
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        compile: bool = False,
        prefix: Int[Tensor, "N n"] | None = None,
    ) -> UInt8[np.ndarray, "N side side 3"]:
        """An image of each class in `labels`, as bytes; image i of a seed is always the same.

        Another threshold than that of training (Table 6), or another limit, is its rule with that replaced:

            generator([3, 7], rule=dataclasses.replace(generator.rule, threshold=5.0, max_length=8))

        Args:
            labels: numbers or names of classes.
            rule: where patches begin; by default as in training.
            cfg_scale: of guidance; 1 is none. This and the following are those of `DrawSettings`.
            prefix: tokens that each image begins with.

        Raises:
            InputError: a label or a setting is out of range, the rule is not one of this model's patches, or not even
                one image fits the memory.
        """
        rule = self.rule if rule is None else self._own(rule)
        if not len(labels):
            return np.empty((0, self.side, self.side, 3), dtype=np.uint8)
        try:
            if isinstance(labels, str):
                raise TypeError("one text; put it into a list")
            known = [self.classes.label(label) if isinstance(label, str) else label for label in labels]
            classes = np.array([operator.index(label) for label in known], dtype=np.int64)
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"labels are names or whole numbers, one per image, not {labels!r} ({error})") from None
        try:
            seed = int(operator.index(seed))
        except TypeError:
            raise InputError(f"the seed is {seed!r}; expected a whole number") from None
        settings = DrawSettings(cfg_scale, cfg_interval, temperature, top_k, top_p, compile)
        sampler = ImageSampler(self.networks, rule, settings, store=self._store)
        return sampler.images(Request.of(classes, seed, prefix)).images

    def _own(self, rule: PatchRule) -> PatchRule:
        """The rule, if patches of this model can be placed by it."""
        if self.rule is None:
            raise InputError("rule: this model is a LlamaGen, which has no patches; leave it out")
        if rule.grid_width != self.rule.grid_width:
            raise InputError(
                f"rule: rows of {rule.grid_width} tokens, this model's images have rows of {self.rule.grid_width}; "
                "replace fields of `generator.rule`"
            )
        return rule


@dataclass(frozen=True)
class Origin:
    """Where the patches of a model's images begin, and the folder of the network that is asked; the name of a gate."""

    rule: PatchRule | None
    boundary_network: Path | None
    gate: str | None


def find_origin(
    model: Path,
    *,
    threshold: float | None = None,
    max_length: int | None = None,
    gate: Path | None = None,
    entropy_model: Path | None = None,
) -> Origin:
    """The patches of training, but for what is given.

    Args:
        threshold: E_Th in nats; of a gate, by default, the one that was calibrated for it.
        gate: a gate's name, or its folder.
        entropy_model: folder; by default the one in the model's folder, or next to it.

    Raises:
        InputError: what is given does not fit the model, or a network is missing.
    """
    check_recorded(*jobs.named_model(model))
    described = model_config(model)
    with fields_of(model / CONFIG):
        rule = PatchRule.of_model(described)
    if rule is None or not rule.is_dynamic:
        kind = "is a model without patches" if rule is None else "was trained on static patches"
        for name, value in (("threshold", threshold), ("max_length", max_length)):
            if value is not None:
                raise InputError(f"{name} is {value}, but {model} {kind}; leave it out")
        if gate is not None:
            raise InputError(f"gate {gate}: the patches of {model}, if any, depend on no entropy; leave it out")
        return Origin(rule, None, None)
    patchify = Patchify.model_validate(described["provenance"]["patchify"])
    if max_length is not None:
        patchify = patchify.model_copy(update={"max_length": max_length})
    if gate is not None:
        folder = gate if (gate / CONFIG).exists() else find_network(model, f"gates/{gate}")
        name = model_config(folder)["provenance"].get("gate", folder.name)
        if threshold is None:
            threshold = gate_threshold(folder, patchify)
    else:
        folder, name = entropy_model or find_network(model, "entropy_model"), None
        threshold = rule.threshold if threshold is None else threshold
    return Origin(PatchRule.of(patchify, threshold, rule.grid_width), folder, name)


def find_network(model: Path, name: str) -> Path:
    """The folder of the network `name` of a model folder: in it, or next to the models of its results.

    Raises:
        InputError: it is not there.
    """
    inside = model.resolve()
    for folder in (inside, *inside.parents):
        if (folder / name / CONFIG).exists():
            return folder / name
    flag = "gate" if name.startswith("gates/") else name.replace("_", "-")
    raise InputError(
        f"there is no {name} folder in {model}, next to it or above it; `dpar export` puts all networks into one "
        f"folder, and `dpar sample` takes --{flag} DIR, the one of the model's experiment"
    )
