"""Features of images: computed once by a frozen network, kept in a file, reused by every metric."""

import hashlib
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from dpar.data.arrays import foreign, read_header, read_npy, read_npz
from dpar.data.crops import center_crop, to_model_input, to_uint8
from dpar.data.images import ImageIndex
from dpar.data.workers import cores, mapped
from dpar.device import full_float32
from dpar.errors import InputError
from dpar.evaluation.frechet import Gaussian
from dpar.evaluation.inception import KNOWN_FILES, load_inception
from dpar.files import atomic_write, sha256_file
from dpar.memory import out_of_memory
from dpar.model.official import DAMAGED, broken_part
from dpar.tracking.makers import check_recorded
from dpar.weights import WEIGHTS, load_model, model_config, model_files

BATCH = 64  # images in one pass of the network


@dataclass(frozen=True)
class Features:
    """A network's features of N images, and the conditions under which they may be compared.

    Args:
        features: pooled features, one row per image.
        logits: class scores without bias, for the Inception Score.
        labels: the class each image belongs to, or was sampled for.
        spatial: Inception's spatial features, for sFID.
        statistics: name (`features`, `spatial`) -> mean and covariance of a larger set that these images stand for, as
            in ADM's reference files.
        conditions: `extractor`, `extractor_sha256`, `resolution` (pixels), `source`, and what else is known.
    """

    features: Float[np.ndarray, "N D"]
    logits: Float[np.ndarray, "N C"] | None = None
    labels: Int[np.ndarray, "N"] | None = None
    spatial: Float[np.ndarray, "N S"] | None = None
    statistics: dict[str, Gaussian] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    def own(self) -> "Features":
        """The same without the statistics of a larger set."""
        return replace(self, statistics={})

    def take(self, rows: Int[np.ndarray, "n"]) -> "Features":
        """These rows only, without the statistics of the whole."""
        logits, labels, spatial = (None if x is None else x[rows] for x in (self.logits, self.labels, self.spatial))
        return Features(self.features[rows], logits, labels, spatial, {}, self.conditions)


def save_features(path: str | Path, features: Features) -> None:
    """Writes an uncompressed npz whole or not at all."""
    arrays: dict[str, Any] = {"features": features.features, "conditions": json.dumps(features.conditions)}
    for name in ("logits", "labels", "spatial"):
        if getattr(features, name) is not None:
            arrays[name] = getattr(features, name)
    for name, gaussian in features.statistics.items():
        arrays[f"{name}_mean"], arrays[f"{name}_covariance"] = gaussian.mean.numpy(), gaussian.covariance.numpy()
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_features(path: str | Path) -> Features:
    """The features in an npz that `save_features` wrote, or in a plain .npy of shape (N, D).

    Raises:
        InputError: the file is missing, damaged, of another kind or shape, or contains NaN or infinity.
    """
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; give the file of features in it (.npy or .npz)")
    loaded = _load_arrays(path)
    if isinstance(loaded, np.ndarray):
        return Features(
            _table(loaded, path, "features"), conditions={"source": str(path), "source_digest": sha256_file(Path(path))}
        )
    _need(path, loaded, "features", "make it with the stage extract_features")
    rows = len(features := _table(loaded["features"], path, "features"))
    return Features(
        features,
        _table(loaded["logits"], path, "logits", rows) if "logits" in loaded else None,
        whole_numbers(path, "labels", loaded["labels"], rows) if "labels" in loaded else None,
        _table(loaded["spatial"], path, "spatial features", rows) if "spatial" in loaded else None,
        {
            name: read_gaussian(path, loaded, f"{name}_mean", f"{name}_covariance")
            for name in ("features", "spatial")
            if f"{name}_mean" in loaded
        },
        read_conditions(path, loaded["conditions"]) if "conditions" in loaded else {"source": str(path)},
    )


def load_logits(path: str | Path) -> Float[np.ndarray, "N C"]:
    """The class scores in a .npy of shape (N, C), or those in a file of features.

    Raises:
        InputError: as `load_features`.
    """
    loaded = _load_arrays(path)
    if isinstance(loaded, dict):
        _need(path, loaded, "logits", "give the class scores, (N, C)")
    return _table(loaded if isinstance(loaded, np.ndarray) else loaded["logits"], path, "logits")


def _load_arrays(path: str | Path) -> np.ndarray | dict[str, np.ndarray]:
    cure = "copy it again, make it with the stage extract_features, or check the path"
    with foreign(path, ".npy or .npz file of numbers", cure):
        with open(path, "rb") as file:
            archive = file.read(2) == b"PK"
        return read_npz(path) if archive else read_npy(path)


def _need(path: str | Path, names: Collection[str], wanted: str, cure: str) -> None:
    """Refuses a file that lacks the array, and says where its kind is taken."""
    if wanted in names:
        return
    if "mu" in names and "sigma" in names and "arr_0" not in names:
        raise InputError(
            f"{path} holds statistics alone (mu, sigma), expected `{wanted}`; dpar reads statistics next to the images "
            "that they are of (`arr_0`), as in ADM's reference files: give such a file, or the images to "
            "`dpar make-reference`"
        )
    raise InputError(f"{path} holds {', '.join(names) or 'nothing'}, expected `{wanted}`; {cure}")


def whole_numbers(path: str | Path, name: str, array: np.ndarray, count: int) -> Int[np.ndarray, "N"]:
    """The labels of so many images in a foreign file, as int32.

    Raises:
        InputError: they are no whole numbers, or not one per image.
    """
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.int32) if array.dtype.kind in "iuf" else None
    if array.shape != (count,) or whole is None or not np.array_equal(whole, array):
        raise InputError(
            f"{path} holds `{name}` of shape {array.shape} and type {array.dtype}, expected {count} whole numbers "
            "of 32 bits, one per image; number the classes, or leave the array out"
        )
    return whole


def read_conditions(path: str | Path, array: np.ndarray) -> dict[str, Any]:
    """Conditions under which a file's images were made, as it records them.

    Raises:
        InputError: that is no JSON object.
    """
    try:
        found = json.loads(str(array[()])) if array.ndim == 0 and array.dtype.kind in "US" else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{path} holds `conditions` of shape {array.shape} and type {array.dtype} that are no JSON object: "
            f"{str(array)[:40]!r}; store them as one text by json.dumps, or leave the array out"
        )
    return found


def read_gaussian(path: str | Path, arrays: Mapping[str, np.ndarray], mean: str, covariance: str) -> Gaussian:
    """Mean and covariance in a file, by their names there.

    Raises:
        InputError: one is missing, they do not belong together, or are not finite.
    """
    first, second = (arrays.get(name, np.empty(0)) for name in (mean, covariance))
    fitting = first.ndim == 1 and second.shape == 2 * first.shape and first.dtype.kind == second.dtype.kind == "f"
    if not fitting or not (np.isfinite(first).all() and np.isfinite(second).all() and np.allclose(second, second.T)):
        raise InputError(
            f"{path} holds `{mean}` of shape {first.shape} ({first.dtype}) and `{covariance}` of shape {second.shape} "
            f"({second.dtype}); expected (D,) and a symmetric (D, D), all finite: copy or make it again"
        )
    return Gaussian(*(torch.from_numpy(array.astype(np.float64)) for array in (first, second)), count=0)


def _table(array: np.ndarray, path: str | Path, what: str, rows: int | None = None) -> Float[np.ndarray, "N D"]:
    if array.ndim != 2 or array.dtype.kind not in "fiu" or rows not in (None, len(array)):
        raise InputError(
            f"{path} holds {what} of shape {array.shape} and type {array.dtype}, expected numbers of shape "
            f"({rows or 'N'}, D): one row per image"
        )
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64 if array.dtype.kind in "iu" else np.float32)
    bad = sum(int((~np.isfinite(block).all(1)).sum()) for block in np.array_split(array, max(1, len(array) // 8192)))
    if bad:
        raise InputError(
            f"{bad} of {len(array)} rows of {what} in {path} contain NaN or infinity; "
            "look at these images or at the network that made the features"
        )
    return array


@dataclass(frozen=True)
class Extractor:
    """A frozen network: pixels of 0 to 255 -> pooled features, logits and, of Inception, spatial features.

    Args:
        name: `classifier`, `inception`, or the name of the user's file.
        sha256: of the file of its weights.
        resolution: the side in pixels that images must have; null = any.
        dimensions: of pooled and of spatial features, the first so many are given; null = all.
        provenance: what the network was made from, as its folder says.
    """

    name: str
    sha256: str
    resolution: int | None
    forward: Callable[[UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]], Sequence[Tensor]]
    provenance: dict[str, Any] = field(default_factory=dict)
    dimensions: int | None = None

    def first(self, dimensions: int | None) -> "Extractor":
        """The same, of whose features all but the first dimensions are left away; null = all of them."""
        if dimensions is None:
            return self

        def forward(images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Sequence[Tensor]:
            features, *logits = self.forward(images)
            return [features[:, :dimensions], *logits[:1], *(spatial[:, :dimensions] for spatial in logits[1:])]

        return replace(self, forward=forward, dimensions=dimensions)


def open_extractor(path: str | Path, device: torch.device) -> Extractor:
    """The classifier in a folder, the Inception network in a file, or a TorchScript file of the user's own.

    The user's network takes float32 (B, 3, H, W) from 0 to 255 and gives features (B, D), or a tuple that begins with
    features and class scores.

    Raises:
        InputError: none of them is there, or it was changed since a job made it.
    """
    path = Path(path)
    check_recorded(*(model_files(path) if path.is_dir() else [path]))
    if path.is_dir():
        network = load_model(path, "classifier", device).to(memory_format=torch.channels_last)
        return Extractor(
            "classifier",
            sha256_file(path / WEIGHTS),
            network.config.resolution,
            lambda images: network(to_model_input(images.to(device))),
            model_config(path)["provenance"],
        )
    data = path.read_bytes() if is_script(path) else b""  # once: what is checked and named is what runs
    if data and (sha256 := hashlib.sha256(data).hexdigest()) not in KNOWN_FILES:
        script = _load_script(path, data, device)
        return Extractor(path.stem, sha256, None, lambda images: _outputs(path, script, images.to(device).float()))
    inception, sha256 = load_inception(path)
    inception.to(device)
    return Extractor("inception", sha256, None, lambda images: inception(images.to(device).float()))


def is_script(path: Path) -> bool:
    """Whether a file is TorchScript, which is a zip archive with code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (*DAMAGED, zipfile.BadZipFile, OSError):  # whatever reads it as other weights says what it is
        return False


def _load_script(path: Path, data: bytes, device: torch.device) -> torch.jit.ScriptModule:
    """The network in the bytes of a TorchScript file, of which torch checks no checksum itself."""
    reason = f"the checksum of its part {broken} does not fit" if (broken := broken_part(BytesIO(data))) else None
    try:
        if reason is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit: a network without its code
                return torch.jit.load(BytesIO(data), map_location=device).eval()
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    raise InputError(f"{path} is a damaged TorchScript file, or of another PyTorch ({reason}); copy or export it again")


def _outputs(path: Path, script: Callable[[Tensor], Any], images: Float[Tensor, "B 3 H W"]) -> Sequence[Tensor]:
    """Outputs of a user's network, if they are features, or features and logits, of each image."""
    try:
        found = script(images)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or ["no reason is said"])[-1]
        raise InputError(
            f"{path} cannot take images of shape {tuple(images.shape)} ({reason}); expected a network of float32 "
            "(B, 3, H, W) from 0 to 255, for any B: `--resolution` chooses H and W"
        ) from None
    outputs = tuple(found) if isinstance(found, tuple | list) else (found,)
    if not outputs or any(
        not isinstance(x, Tensor) or x.ndim != 2 or len(x) != len(images) or not x.is_floating_point()
        for x in outputs[:2]
    ):
        shapes = ", ".join(
            f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__ for x in outputs
        )
        raise InputError(
            f"{path} gives {shapes or 'nothing'} of {len(images)} images; expected features (B, D), or those and class "
            "scores (B, C)"
        )
    return outputs[:2]


@torch.inference_mode()
def outputs_of(
    extractor: Extractor, batches: Iterable[UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]]
) -> Iterator[Sequence[Tensor]]:
    """The outputs of the network (features, logits, ...) for each batch, computed without TF32."""
    for batch in batches:
        with full_float32():
            found = extractor.forward(batch.contiguous(memory_format=torch.channels_last))
        yield found


def extract(
    extractor: Extractor, batches: Iterable[UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]]
) -> list[Float[np.ndarray, "N _"]]:
    """Each output of the network for all images, float32."""
    outputs = [[output.float().cpu().numpy() for output in found] for found in outputs_of(extractor, batches)]
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def index_batches(
    index: ImageIndex, rows: Int[np.ndarray, "n"], side: int, size: int = BATCH
) -> Iterator[UInt8[Tensor, "B 3 side side"]]:
    """These images of an index, cropped as ADM does to `side` pixels, read ahead by threads."""
    return stacked(
        mapped(lambda i: to_uint8(center_crop(index.read(i), side)), map(int, rows), threads=cores(), ahead=2 * size),
        size,
    )


def stacked(images: Iterable[Shaped[Tensor, "3 H W"]], size: int = BATCH) -> Iterator[Shaped[Tensor, "B 3 H W"]]:
    """Batches of `size` images, the last perhaps smaller."""
    rest = iter(images)
    while batch := list(islice(rest, size)):
        yield torch.stack(batch)


# Other arrays in an npz of images: samples have classes, patches and conditions, a reference its statistics.
KNOWN = ("labels", "patches", "conditions", "mu", "sigma", "mu_s", "sigma_s")


@dataclass(frozen=True)
class ImageArray:
    """Images stored as `arr_0` (N, H, W, 3) bytes in an npz, as ADM's evaluator reads them; read as a stream.

    Args:
        arrays: of `KNOWN`, what else is in the file.
    """

    path: Path
    shape: tuple[int, int, int, int]
    arrays: dict[str, np.ndarray]

    @classmethod
    def open(cls, path: str | Path) -> "ImageArray":
        """The images in a file, of which only the shape is read, and the other arrays that are known.

        Raises:
            InputError: the file is missing, damaged or holds no such images.
        """
        with foreign(path, "npz file with images as `arr_0`", "copy or draw it again, or check the path"):
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                _need(path, names, "arr_0", "name the images so: `dpar evaluate --help` says what else can be measured")
                with archive.open("arr_0.npy") as stream:
                    shape, fortran, dtype = read_header(stream)
                _check_count(archive.getinfo("arr_0.npy"), shape)
            arrays = read_npz(path, KNOWN)
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran or shape[1] != shape[2]:
            raise InputError(
                f"{path} holds `arr_0` of shape {shape} and type {dtype}{' by columns' if fortran else ''}, expected "
                "square RGB images as bytes, (N, H, W, 3) uint8: bring floats to 0 .. 255 and round them, put channels "
                "last, repeat grey, blend alpha"
            )
        for name in ("labels", "patches"):
            if name in arrays:
                arrays[name] = whole_numbers(path, name, arrays[name], shape[0])
        if "conditions" in arrays:
            read_conditions(path, arrays["conditions"])
        return cls(Path(path), shape, arrays)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def conditions(self) -> dict[str, Any] | None:
        """Conditions under which the images were made, where the file has them."""
        return read_conditions(self.path, self.arrays["conditions"]) if "conditions" in self.arrays else None

    def read(self, chosen: Bool[np.ndarray, "N"]) -> Iterator[UInt8[Tensor, "3 H W"]]:
        """The chosen images in the file's order; nothing after the last of them is read.

        Raises:
            InputError: the file ends too early.
        """
        last = int(chosen.nonzero()[0][-1]) if chosen.any() else -1
        stored = (image for batch in self.batches() for image in batch)
        return (image for wanted, image in zip(chosen[: last + 1], stored, strict=False) if wanted)

    def batches(self, size: int = BATCH) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        """The images in the file's order.

        Raises:
            InputError: the file ends too early.
        """
        count, *image = self.shape
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as stream:
                read_header(stream)
                for start in range(0, count, size):
                    here = min(size, count - start)
                    data = bytearray(stream.read(here * int(np.prod(image))))
                    pixels = torch.frombuffer(data, dtype=torch.uint8).reshape(here, *image)
                    yield pixels.permute(0, 3, 1, 2)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError) as error:
            raise InputError(f"{self.path} ends too early or is damaged ({error}); copy or make it again") from None


def _check_count(member: zipfile.ZipInfo, shape: tuple[int, ...]) -> None:
    """Refuses more images than a member of an archive can hold: what deflates makes 1032 bytes of one at most."""
    there = 1032 * (member.compress_size + 1)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or math.prod(shape) > there:
        raise ValueError(f"{member.compress_size} bytes as `arr_0` for images of shape {shape}")
