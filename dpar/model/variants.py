"""Models from an experiment's settings; the sizes by name (Table 1) are `dpar.experiment.settings.VARIANTS`."""

from pydantic import ValidationError

from dpar.errors import InputError
from dpar.experiment.settings import EntropyModel, Transformer
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.entropy_regressor import EntropyRegressor, EntropyRegressorConfig
from dpar.model.llamagen import LlamaGen, LlamaGenConfig


def model_config(
    transformer: Transformer, *, vocab_size: int, grid: tuple[int, int], num_classes: int | None
) -> LlamaGenConfig | DPARConfig:
    """The sizes that `transformer` names: its variant's row, overridden by its own settings.

    Args:
        transformer: a variant, sizes, or a variant with some sizes changed (Table 10).
        vocab_size: codes of the tokenizer (V).
        grid: rows and columns of tokens.
        num_classes: None for an unconditional model.

    Raises:
        InputError: the sizes do not fit each other.
    """
    sizes = {name: value for name, value in transformer.sizes.items() if value is not None}
    architecture = sizes.pop("architecture")
    sizes |= {"vocab_size": vocab_size, "grid": grid, "num_classes": num_classes}
    sizes |= {"dropout": transformer.dropout, "class_dropout": transformer.class_dropout}
    try:
        if architecture == "dpar":
            own = {name: getattr(transformer, name) for name in ("position", "query_pooling", "attention")}
            return DPARConfig(**sizes, **own)
        return LlamaGenConfig(**sizes)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'sizes'}: {e['msg']}" for e in error.errors())
        raise InputError(f"model {transformer.variant or architecture} cannot be built: {problems}") from None


def build_model(
    transformer: Transformer, *, vocab_size: int, grid: tuple[int, int], num_classes: int | None
) -> LlamaGen | DPAR:
    """A freshly initialised model of `model_config`'s sizes, on the default device.

    Raises:
        InputError: as `model_config`.
    """
    config = model_config(transformer, vocab_size=vocab_size, grid=grid, num_classes=num_classes)
    return DPAR(config) if isinstance(config, DPARConfig) else LlamaGen(config)


def entropy_model_config(
    settings: EntropyModel, *, vocab_size: int, grid: tuple[int, int], num_classes: int
) -> LlamaGenConfig:
    """The sizes of an entropy model or gate.

    Args:
        num_classes: of the images; only a network that is asked through its null class has them.

    Raises:
        InputError: as `model_config`.
    """
    classes = num_classes if settings.kind == "null_class" else None
    config = model_config(settings.model, vocab_size=vocab_size, grid=grid, num_classes=classes)
    assert isinstance(config, LlamaGenConfig), "an experiment's entropy model is a LlamaGen"
    return EntropyRegressorConfig(**dict(config)) if settings.kind == "distilled" else config


def build_entropy_model(config: LlamaGenConfig) -> LlamaGen:
    """A freshly initialised entropy model or gate of these sizes, on the default device."""
    return EntropyRegressor(config) if isinstance(config, EntropyRegressorConfig) else LlamaGen(config)
