"""The three networks that turn a label into an image, loaded from their folders and checked to belong together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from dpar.data.crops import center_crop, to_model_input
from dpar.data.decoding import UNREADABLE, decode
from dpar.device import full_float32, without_tf32
from dpar.errors import InputError
from dpar.experiment.settings import EntropyPrecision, Patchify
from dpar.files import fields_of, read_json
from dpar.memory import in_pieces
from dpar.model.dpar import DPAR
from dpar.model.entropy import entropy_weights
from dpar.model.llamagen import LlamaGen
from dpar.tokenizer.autoencoder import VQAutoencoder, to_bytes
from dpar.tracking.makers import check_recorded
from dpar.weights import CONFIG, load_model, model_config, model_files

PIXELS_AT_ONCE = 2**21
"""Pixels that are encoded or decoded together: 32 images of 256 x 256."""

ENTROPY_MODELS = "llamagen", "entropy_regressor"
"""Kinds of networks that may place boundaries."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Networks:
    """A model with its entropy model and tokenizer.

    Attributes:
        model: DPAR or LlamaGen, in the precision of sampling.
        entropy_model: in `entropy_precision`, not in that of sampling; None where no patch depends on an entropy.
        tokenizer: in float32.
        provenance: the origin of the model, as its folder says.
        digests: SHA-256 of the weights of each network.
        entropy_precision: of the products behind entropies, as the training's codes were scored, or a gate calibrated.
    """

    model: DPAR | LlamaGen
    entropy_model: LlamaGen | None
    tokenizer: VQAutoencoder
    provenance: dict[str, Any]
    digests: dict[str, str | None]
    entropy_precision: EntropyPrecision = "float32"

    @property
    def side(self) -> int:
        """Pixels of a side of the images that the model draws."""
        return self.model.config.grid[0] * self.tokenizer.config.downsample

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.model.tok_embeddings.weight.device

    def tokens(self, images: UInt8[np.ndarray, "B side side 3"]) -> Int[Tensor, "B T"]:
        """The tokens of images.

        Raises:
            InputError: the model draws images of another size.
        """
        rows, columns = self.model.config.grid
        expected = rows * self.tokenizer.config.downsample, columns * self.tokenizer.config.downsample
        if images.shape[1:3] != expected:
            found, wanted = (" x ".join(map(str, size)) for size in (images.shape[1:3], expected))
            raise InputError(f"the images have {found} pixels, the model draws {wanted}; resize them")
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)

        def encode(first: int, last: int) -> Int[Tensor, "n T"]:
            return self.tokenizer.encode(to_model_input(pixels[first:last])).flatten(1)

        with torch.inference_mode(), full_float32():
            codes = torch.cat(list(in_pieces(encode, 0, len(pixels), self._at_once(images.shape[1]))))
        return codes.clone()  # made in inference mode, usable outside

    def beginning(self, file: bytes, keep_rows: int) -> Int[Tensor, " n"]:
        """The tokens of the rows from the top that are kept of an image, decoded and cropped as for training.

        Raises:
            InputError: there are no such rows, or the file cannot be read.
        """
        rows, columns = self.model.config.grid
        if not 1 <= keep_rows < rows:
            raise InputError(f"an image has {rows} rows of tokens; keep 1 to {rows - 1}, not {keep_rows}")
        try:
            image = np.array(center_crop(decode(file), self.side))
        except UNREADABLE as error:
            raise InputError(f"it cannot be read ({error}); give the whole file of an 8-bit image") from None
        return self.tokens(image[None])[0, : keep_rows * columns]

    @staticmethod
    def _at_once(side: int) -> int:
        return max(1, PIXELS_AT_ONCE // side**2)

    def pixels(self, tokens: Int[Tensor, "B T"], side: int) -> UInt8[np.ndarray, "B side side 3"]:
        """Images of tokens as bytes; those of another size are first resized, bicubic without antialias.

        Args:
            side: pixels.
        """

        def decode(first: int, last: int) -> UInt8[np.ndarray, "n side side 3"]:
            with without_tf32():  # another batch may be drawn meanwhile
                images = self.tokenizer.decode(tokens[first:last].unflatten(1, self.model.config.grid))
                if images.shape[-1] != side:
                    images = F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
            return to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()

        with torch.inference_mode(), full_float32():
            return np.concatenate(list(in_pieces(decode, 0, len(tokens), self._at_once(side))))


def load_networks(
    model: Path,
    entropy_model: Path | None,
    tokenizer: Path,
    *,
    gate: str | None = None,
    precision: str,
    device: torch.device,
) -> Networks:
    """The networks in three model folders.

    Args:
        entropy_model: None if no patch depends on an entropy.
        gate: `entropy_model` is not the one that the model was trained with, but this gate of the same experiment.
        precision: `float32` or `bfloat16`, of the model.

    Raises:
        InputError: a folder holds something else, networks that were not made for one another, or weights that are
            not finite.
    """
    folders = [folder for folder in (model, entropy_model, tokenizer) if folder is not None]
    check_recorded(*(path for folder in folders for path in model_files(folder)))
    described = _described(model, "dpar", "llamagen")
    digests: dict[str, str | None] = {"model": described["sha256"], "entropy_model": None}
    provenance = described["provenance"]
    known = _described(tokenizer, "tokenizer")
    digests["tokenizer"] = known["sha256"]
    _expect(model, provenance, "tokenizer", tokenizer, known["sha256"])
    boundary_network, entropy_precision = None, "float32"
    if entropy_model is not None:
        known = _described(entropy_model, *ENTROPY_MODELS)
        digests["entropy_model"] = known["sha256"]
        if gate is None:
            _expect(model, provenance, "entropy_model", entropy_model, known["sha256"])
        else:
            _expect_gate(entropy_model, known, gate, model, provenance)
        _expect(entropy_model, known["provenance"], "tokenizer", tokenizer, digests["tokenizer"])
        entropy_precision = (provenance if gate is None else _calibration(entropy_model)).get(
            "entropy_precision", entropy_precision
        )
        boundary_network = entropy_weights(load_model(entropy_model, known["kind"], device), entropy_precision)
    network = load_model(model, described["kind"], device).to(PRECISIONS[precision])
    decoder = load_model(tokenizer, "tokenizer", device)
    found = Networks(network, boundary_network, decoder, provenance, digests, entropy_precision)
    _expect_sizes(found, model, entropy_model, tokenizer)
    return found


def _expect_sizes(networks: Networks, model: Path, entropy_model: Path | None, tokenizer: Path) -> None:
    """Makes sure that networks, from these folders, are of the same codes, tokens and grid."""
    own, decoder, boundary_network = networks.model.config, networks.tokenizer.config, networks.entropy_model
    for folder, found in ((tokenizer, networks.tokenizer), (entropy_model, boundary_network)):
        if found is not None and found.config.vocab_size != own.vocab_size:
            raise InputError(
                f"{folder} knows {found.config.vocab_size} codes, {model} {own.vocab_size}: they were "
                "made for different tokenizers; give the folders of one experiment"
            )
    pixels = networks.provenance.get("downsample")  # published models know no more of their tokenizer
    if pixels not in (None, decoder.downsample):
        raise InputError(
            f"{tokenizer} makes a token of {decoder.downsample} x {decoder.downsample} pixels, {model} was trained on "
            f"tokens of {pixels} x {pixels}; give a tokenizer of these, such as VQ-{pixels}"
        )
    if boundary_network is not None and boundary_network.config.grid != own.grid:
        raise InputError(
            f"{entropy_model} reads images of {_grid(boundary_network)} tokens, {model} those of "
            f"{_grid(networks.model)}: they were made for different resolutions; give the folders of one experiment"
        )


def gate_thresholds(folder: Path) -> Path:
    """The file that calibrate_gate writes next to the folder of a gate."""
    return folder.with_name(f"{folder.name}.thresholds.json")


def _calibration(gate: Path) -> dict[str, Any]:
    """The record of calibrate_gate about the gate in that folder; empty where it has not been calibrated."""
    path = gate_thresholds(gate)
    return read_json(path, kind=dict) if path.exists() else {}


def gate_threshold(folder: Path, patchify: Patchify) -> float:
    """E_Th in nats at which the gate in `folder` gives the mean patch length that the entropy model's E_Th gives.

    Raises:
        InputError: the gate was calibrated for other patches, or it is not the network that was calibrated.
    """
    path = gate_thresholds(folder)
    check_recorded(path)
    found = read_json(path, kind=dict)
    with fields_of(path):
        gate, rules = (
            found["gate"],
            [(Patchify(**rule["patchify"]), float(rule["threshold"])) for rule in found["rules"]],
        )
    if gate != model_config(folder)["sha256"]:
        raise InputError(f"{path} was made for another network than the one in {folder}; run calibrate_gate again")
    for calibrated, threshold in rules:
        if calibrated == patchify:
            return threshold
    raise InputError(
        f"{path} has no threshold for patches of {patchify}; sample such a cell in a table of the experiment and run "
        "calibrate_gate again, or give the threshold in nats of this gate"
    )


def _grid(model: Any) -> str:
    return " x ".join(map(str, model.config.grid))


def _described(folder: Path, *kinds: str) -> dict[str, Any]:
    described = model_config(folder)
    if described["kind"] not in kinds:
        raise InputError(f"{folder / CONFIG} describes a {described['kind']}, expected a {' or '.join(kinds)}")
    return described


def _expect_gate(folder: Path, known: dict[str, Any], gate: str, model: Path, provenance: dict[str, Any]) -> None:
    """Makes sure that the network in `folder` places boundaries instead of the one that the model was trained with."""
    origin = known["provenance"]
    if origin.get("gate") != gate:
        found = f"the gate {origin['gate']!r}" if origin.get("gate") else "no gate of an experiment"
        raise InputError(
            f"{folder} is {found}, expected the gate {gate!r}; give the folder of that gate, or name it under `gates` "
            "of the experiment and make it by the rules"
        )
    teacher, own = origin.get("entropy_model"), provenance.get("entropy_model")
    if known["kind"] == "entropy_regressor" and teacher != own:
        raise InputError(
            f"{folder} was distilled from another entropy model (sha256 {str(teacher)[:12]}...) than "
            f"{model} was trained with (sha256 {str(own)[:12]}...); distil it again"
        )


def _expect(folder: Path, provenance: dict[str, Any], name: str, given: Path, found: str | None) -> None:
    """The network `given` is the one that `folder` was made with; published models do not know theirs."""
    expected = provenance.get(name)
    if expected is not None and expected != found:
        what = name.replace("_", " ")
        raise InputError(
            f"{folder} was made with another {what} (sha256 {expected[:12]}...) than the one in {given} "
            f"(sha256 {str(found)[:12]}...); give the folder of the former, or train {folder.name} again"
        )
