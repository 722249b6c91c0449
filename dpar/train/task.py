"""A training: network, codes, settings, and what of them decides the weights."""

import json
from dataclasses import dataclass
from typing import Any

from dpar.data.codes import CodeStore
from dpar.data.loader import steps_per_epoch
from dpar.experiment.settings import TRAINING_PACE, Patchify, Settings, Training
from dpar.model.entropy_regressor import EntropyRegressorConfig
from dpar.patches.rule import PatchRule


@dataclass(frozen=True)
class Task:
    """A training: network, codes and settings.

    Attributes:
        model: freshly initialised, on this rank's device.
        train: codes to learn from.
        val: codes to validate on.
        patchify: the patches of a DPAR as the experiment states them, for the record; None for another network.
        rule: where they begin.
        seed: of order, views, class dropout and dropout.
        recipe: raised when a change of the code changes the result.
    """

    model: Any
    training: Training
    train: CodeStore
    val: CodeStore
    patchify: Patchify | None
    rule: PatchRule | None
    seed: int
    recipe: int | str

    @property
    def labelled(self) -> bool:
        """Whether the network is told the class."""
        return self.model.config.num_classes is not None

    @property
    def distilled(self) -> bool:
        """Whether the network learns the stored entropies, and not the tokens."""
        return isinstance(self.model.config, EntropyRegressorConfig)

    def steps(self, length: int) -> int:
        """Optimizer steps in so many of the training's unit, steps or epochs.

        Raises:
            InputError: the images do not fill one batch.
        """
        return length * (steps_per_epoch(self.train, self.training.batch_size) if self.training.unit == "epoch" else 1)

    @property
    def made_from(self) -> dict[str, Any]:
        """Everything that decides the weights after a given step, up to rounding and the dropout of several ranks."""
        model = self.model.config.model_dump(mode="json")
        if "attention" in model:  # the back end only rounds differently; `auto`, as most states have it
            model["attention"] = "auto"
        return {
            "model": {"kind": type(self.model).__name__, **model},
            "training": self.training.model_dump(mode="json", exclude=set(TRAINING_PACE)),
            "patches": self.patchify and self.rule and [self.patchify.model_dump(mode="json"), self.rule.threshold],
            "codes": self.train.digest,
            "seed": self.seed,
            "recipe": self.recipe,
        }


def flat_params(**groups: Settings | None) -> dict[str, str | int | float | bool | None]:
    """Settings as a job records them: `group.name`, one level deep."""
    return {
        f"{group}.{name}": json.dumps(value) if isinstance(value, list | dict) else value
        for group, settings in groups.items()
        if settings is not None
        for name, value in settings.model_dump(mode="json").items()
    }
