"""The sizes by name (Table 1 and LlamaGen's), and models from an experiment's settings."""

from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import ValidationError

from dpar.config import Transformer
from dpar.errors import InputError
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.llamagen import LlamaGen, LlamaGenConfig


@dataclass(frozen=True)
class Variant:
    """A row of Table 1; `layers` is its column "Global T.", or the depth of a LlamaGen."""

    architecture: Literal["dpar", "llamagen"]
    width: int
    heads: int
    layers: int
    encoder_layers: int | None = None
    decoder_layers: int | None = None


VARIANTS = {
    "LlamaGen-B": Variant("llamagen", 768, 12, 12),
    "LlamaGen-L": Variant("llamagen", 1024, 16, 24),
    "LlamaGen-XL": Variant("llamagen", 1280, 20, 36),
    "LlamaGen-XXL": Variant("llamagen", 1536, 24, 48),
    "DPAR-B": Variant("dpar", 768, 12, 8, 1, 3),
    "DPAR-L": Variant("dpar", 1024, 16, 19, 1, 4),
    "DPAR-XL": Variant("dpar", 1280, 20, 30, 1, 5),
    "DPAR-XXL": Variant("dpar", 1536, 24, 41, 1, 6),
}

DPAR_ONLY = ("encoder_layers", "decoder_layers", "position", "attention")


def model_config(
    transformer: Transformer, *, vocab_size: int, grid: tuple[int, int], num_classes: int | None
) -> LlamaGenConfig | DPARConfig:
    """The sizes that `transformer` names: its variant's row, with what it says itself in place of the row's.

    Args:
        transformer: a variant, sizes, or a variant with some sizes changed (Table 10).
        vocab_size: codes of the tokenizer (V).
        grid: rows and columns of tokens.
        num_classes: None for an unconditional model.

    Raises:
        InputError: the variant is unknown, or a setting does not fit the architecture.
    """
    said = {name: value for name, value in transformer if name in transformer.model_fields_set and value is not None}
    variant = said.pop("variant", None)
    row = {}
    if variant is not None:
        if variant not in VARIANTS:
            raise InputError(f"model variant {variant!r} is unknown; expected one of {', '.join(VARIANTS)}")
        row = {name: value for name, value in asdict(VARIANTS[variant]).items() if value is not None}
        if said.get("architecture", row["architecture"]) != row["architecture"]:
            raise InputError(f"variant {variant} is a {row['architecture']}, but `architecture` is {said['architecture']}")
    sizes = row | said
    architecture = sizes.pop("architecture")
    if architecture == "llamagen" and (wrong := [name for name in DPAR_ONLY if name in sizes]):
        raise InputError(f"a LlamaGen has no {' and no '.join(f'`{name}`' for name in wrong)}; remove it from the model")
    if architecture == "dpar" and "decoder_layers" not in sizes:
        raise InputError("a DPAR without `variant` needs `decoder_layers`, the depth of its patch decoder")
    config = DPARConfig if architecture == "dpar" else LlamaGenConfig
    defaults = {"dropout": transformer.dropout, "class_dropout": transformer.class_dropout}
    try:
        return config(**(defaults | sizes), vocab_size=vocab_size, grid=grid, num_classes=num_classes)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'sizes'}: {e['msg']}" for e in error.errors())
        raise InputError(f"model {variant or architecture} cannot be built: {problems}") from None


def build_model(
    transformer: Transformer, *, vocab_size: int, grid: tuple[int, int], num_classes: int | None
) -> LlamaGen | DPAR:
    """A freshly initialised model of `model_config`'s sizes, on the default device.

    Raises:
        InputError: as `model_config`.
    """
    config = model_config(transformer, vocab_size=vocab_size, grid=grid, num_classes=num_classes)
    return DPAR(config) if isinstance(config, DPARConfig) else LlamaGen(config)
