"""A network as a folder: `model.safetensors` next to a `config.json` with its settings and origin."""

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpar.errors import InputError
from dpar.experiment.settings import Patchify
from dpar.files import EXPORTED, atomic_write, fields_of, is_sealed, read_json, sha256_file, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RESOLVED = "experiment.json"
WITH_SEALED_CONFIG = {CONFIG: "sealed"}
"""The word in the header of weights since their description carries a checksum: one that has lost it is refused."""

# kind -> module and class; the class takes its `Config` and keeps it as `.config`
KINDS = {
    "dpar": ("dpar.model.dpar", "DPAR"),
    "llamagen": ("dpar.model.llamagen", "LlamaGen"),
    "entropy_regressor": ("dpar.model.entropy_regressor", "EntropyRegressor"),
    "tokenizer": ("dpar.tokenizer.autoencoder", "VQAutoencoder"),
    "classifier": ("dpar.evaluation.classifier", "ImageClassifier"),
}


class _Sizes(BaseModel):
    """Sizes of a model that are read before its class takes them."""

    grid: tuple[int, int] | None = None


class _Provenance(BaseModel):
    """Fields of a model's origin that other parts read; imported and older networks lack some of them."""

    model_config = ConfigDict(strict=True)
    tokenizer: str | None = None
    entropy_model: str | None = None
    gate: str | None = None
    step: int | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    patchify: Patchify | None = None
    threshold: float | None = None
    seed: int | None = None
    accuracy: float | None = None
    train_digest: str | None = None
    downsample: int | None = None
    classes: list[str | None] | None = None

    @model_validator(mode="after")
    def _has_threshold(self) -> Self:
        dynamic = self.patchify is not None and self.patchify.is_dynamic
        if dynamic and (self.threshold is None or math.isnan(self.threshold)):
            raise ValueError("dynamic patches need the threshold in nats")
        return self


class _Described(BaseModel):
    """A config.json, as far as other parts than its model's class read it."""

    kind: str
    model: _Sizes
    provenance: _Provenance

    @model_validator(mode="after")
    def _has_grid(self) -> Self:
        if self.kind in ("dpar", "llamagen") and self.model.grid is None:
            raise ValueError("the grid of the model is missing")
        return self


class _Exported(BaseModel):
    """The list of an exported model: digests of its descriptions, by name."""

    files: dict[str, str]


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Writes `tensors` by name as safetensors to `path` whole or not at all, with a header `about` them.

    Raises:
        InputError: the disk is full or the folder cannot be written; whatever stood at `path` is untouched.
    """
    with atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777
        try:
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(whole, temporary, about)
        except SafetensorError as error:  # hides the operating system's error number in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        if temporary.stat().st_mode & 0o777 != mode:  # safetensors lets nobody else read what it writes
            temporary.chmod(mode)


def check_finite(tensors: Mapping[str, Tensor], source: str | Path, advice: str) -> None:
    """Checks that all tensors are finite.

    Raises:
        InputError: a number is NaN or infinite; it names their `source`, and has the `advice` for the next step.
    """
    bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items() if not tensor.isfinite().all()}
    if bad:
        first = f"{bad[min(bad)]:,} of the {tensors[min(bad)].numel():,} numbers of {min(bad)}"
        more = f" and some of {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise InputError(f"{source} has weights that are not finite: {advice} ({first}{more} are NaN or infinite)")


def save_model(folder: str | Path, model: Any, provenance: dict[str, Any]) -> None:
    """Writes the model's weights and `{kind, model, sha256, provenance}` to `folder`, each file whole or not at all."""
    kind = next(
        k for k, (module, name) in KINDS.items() if (type(model).__module__, type(model).__name__) == (module, name)
    )
    folder = Path(folder)
    write_tensors(folder / WEIGHTS, model.state_dict(), WITH_SEALED_CONFIG)
    write_json(
        folder / CONFIG,
        {
            "kind": kind,
            "model": model.config.model_dump(mode="json"),
            "sha256": sha256_file(folder / WEIGHTS),
            "provenance": provenance,
        },
    )


def seal_export(folder: str | Path) -> None:
    """Writes into an exported model the digests of its descriptions, each of which has that of its weights."""
    folder = Path(folder)
    found = [*folder.glob(f"*/{CONFIG}"), folder / CONFIG, folder / RESOLVED]
    digests = {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(found) if path.is_file()}
    write_json(folder / EXPORTED, {"files": digests})


def export_of(path: Path) -> Path | None:
    """The exported model that a file belongs to, with the digests of its files; None for others."""
    for folder in (path.parent, path.parent.parent):
        if (folder / EXPORTED).is_file() and path.relative_to(folder).as_posix() in _exported(folder):
            return folder
    return None


def _exported(folder: Path) -> dict[str, str]:
    with fields_of(folder / EXPORTED):
        return _Exported.model_validate(read_json(folder / EXPORTED, kind=dict)).files


def check_export(folder: str | Path) -> None:
    """Makes sure of the descriptions in the exported model that a folder is or belongs to; others are not looked at.

    Raises:
        InputError: one was changed, exchanged or lost since.
    """
    exported = export_of(Path(folder) / CONFIG)
    for name, sha256 in _exported(exported).items() if exported else ():
        path = Path(exported or "", name)
        # nothing reads the resolved settings: they may be left out
        changed = sha256_file(path) != sha256 if path.is_file() else name != RESOLVED
        if changed:
            raise InputError(
                f"{path} is not what was exported with the files around it (sha256 {sha256[:12]} in {EXPORTED}): put "
                f"it back, or export the model again; `dpar track accept {path}` says that it is meant as it is"
            )


def model_files(folder: str | Path) -> list[Path]:
    """The files of a model, weights and description; other stages put theirs next to them."""
    return [Path(folder) / WEIGHTS, Path(folder) / CONFIG]


def model_config(folder: str | Path) -> dict[str, Any]:
    """The contents of config.json as `save_model` wrote it.

    Raises:
        InputError: the folder holds no model of ours, or what others read of it is missing or of another type.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("kind"), str) or config["kind"] not in KINDS:
        raise InputError(f"{folder / CONFIG} does not describe a model (kinds: {', '.join(KINDS)})")
    if has_lost_seal(folder / CONFIG):
        raise InputError(
            f"{folder / CONFIG} has lost its seal, with which these weights were written, so that it may have been "
            f"changed: put it back, or make the model again; `dpar track accept {folder / CONFIG}` says that it is "
            "meant as it is"
        )
    for name, kind in (("model", dict), ("sha256", str), ("provenance", dict)):
        if not isinstance(config.get(name), kind):
            raise InputError(
                f"{folder / CONFIG} describes a model without `{name}`, or with another {name} than expected; make the "
                "model again"
            )
    with fields_of(folder / CONFIG):
        _Described.model_validate(config)
    return config


def has_lost_seal(path: str | Path) -> bool:
    """Whether the JSON file `path` describes weights that were written with a sealed description, and is not sealed."""
    path = Path(path)
    if path.name != CONFIG or is_sealed(path):
        return False
    with suppress(OSError, SafetensorError), safe_open(path.with_name(WEIGHTS), "pt") as weights:
        return (weights.metadata() or {}).get(CONFIG) == WITH_SEALED_CONFIG[CONFIG]
    return False


def provenance_of(folder: str | Path, *names: str) -> dict[str, Any]:
    """Origin of the model in `folder`, with all of `names`.

    Raises:
        InputError: it does not, or the folder holds no model of ours.
    """
    provenance = model_config(folder)["provenance"]
    if lacking := [name for name in names if name not in provenance]:
        raise InputError(
            f"{Path(folder) / CONFIG} does not say of its model: {', '.join(lacking)} (under `provenance`); put back "
            "the one that its training wrote, or make the model again"
        )
    return provenance


def model_settings(folder: str | Path) -> tuple[type, Any]:
    """The class of the model in `folder`, and its sizes as that class takes them.

    Raises:
        InputError: the folder holds no model of ours, or its sizes are none of that kind.
    """
    config = model_config(folder)
    module, name = KINDS[config["kind"]]
    network = getattr(import_module(module), name)
    with fields_of(Path(folder) / CONFIG):
        return network, network.Config.model_validate(config["model"])


def verify_model(folder: str | Path) -> None:
    """Checks that the weights in `folder` are those that its config.json was written for.

    Raises:
        InputError: they are others, damaged or missing, or the folder holds no model of ours.
    """
    folder = Path(folder)
    recorded = model_config(folder).get("sha256")
    if not (folder / WEIGHTS).exists():
        raise InputError(f"{folder / WEIGHTS} is missing; copy the whole folder, or run again what made it")
    if (found := sha256_file(folder / WEIGHTS)) != recorded:
        raise InputError(
            f"{folder / WEIGHTS} has the SHA-256 {found}, but the {CONFIG} next to it was written for {recorded}: the "
            f"file was damaged or copied in part, or its writer stopped between the two. Delete {folder}, and copy it "
            "again or run the command that made it"
        )


def load_model(folder: str | Path, kind: str, device: str | torch.device = "cpu") -> Any:
    """The model of that `kind` in `folder`, in eval mode.

    Raises:
        InputError: another kind, a missing or damaged file, weights that the configuration was not written for,
            tensors that do not fit it, or numbers that are not finite.
    """
    folder = Path(folder)
    check_export(folder)
    config = model_config(folder)
    if config["kind"] != kind:
        raise InputError(f"{folder} holds a {config['kind']}, expected a {kind}")
    verify_model(folder)
    network, settings = model_settings(folder)
    model = network(settings)
    try:
        tensors = load_file(folder / WEIGHTS, device="cpu")
        model.load_state_dict(tensors, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS} is damaged or of another configuration: {error}") from None
    check_finite(tensors, folder, "its training diverged; train it again")
    return model.to(device).eval()
