"""Published weights: read without running code, and distinguished from failed downloads."""

import argparse
import codecs
import math
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from dpar.errors import InputError
from dpar.files import sha256_file
from dpar.model.llamagen import LlamaGen, LlamaGenConfig
from dpar.paper import DOWNSAMPLE
from dpar.weights import check_finite

LAYOUTS = ("model", "module", "state_dict")
"""Where a file may keep its tensors by name: the first that it has is read, as by who draws from LlamaGen."""

# a tensor of each published network, and what that is called
_NETWORKS = {"quantize.embedding.weight": "a VQ tokenizer", "tok_embeddings.weight": "a transformer of LlamaGen"}

# what torch's reader raises, in addition to UnpicklingError, where a file's bytes are not what it expects
DAMAGED = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, EOFError,
    struct.error,
)  # fmt: skip


def _check_bytes(path: Path, sha256: str | None) -> None:
    """Refuses a file that is no PyTorch file by size, first bytes or checksums, or that has another digest.

    The digest is known if it is given, or if PATH.sha256 lies next to the file.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {found}; download the weights from where they are published and give the file itself")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
    found, advice = "", "download it again"
    if not head:
        found = "is empty"
    elif head.startswith(b"version https://git-lfs"):
        whole = re.search(rb"^size (\d+)", head, re.MULTILINE)
        found = f"is a git-lfs pointer of {size} bytes to a file of {whole[1].decode() if whole else 'unknown'} bytes"
        advice = "run `git lfs pull` in that repository, or download the file itself"
    elif (text := head.removeprefix(codecs.BOM_UTF8).lstrip()).startswith(b"<"):
        found = f"is a web page ({size} bytes beginning {text[:15].decode(errors='replace')!r})"
        advice = "use the download link of the file, not that of the page about it"
    elif head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            found = f"is cut off after {size} bytes: the index at the end of the archive is missing"
        elif wrong := broken_part(path):
            found = f"is damaged: the checksum of its part {wrong} does not fit"
        else:
            found, advice = _other_archive(path)
    elif not head.startswith(b"\x80"):
        found = f"is no PyTorch file: its {size} bytes begin {head[:8].hex(' ')}"
        advice = "give a file that `torch.save` wrote (.pt or .pth)"
    if found:
        raise InputError(f"{path} {found}; expected PyTorch weights: {advice}")
    checksum = path.with_name(path.name + ".sha256")
    expected = {"the settings say": sha256} if sha256 else {}
    if checksum.is_file():
        expected[f"{checksum.name} says"] = (checksum.read_text("utf-8", "replace").split() or [""])[0]
    actual = sha256_file(path) if expected else None
    for who, digest in expected.items():
        if digest.lower() != actual:
            raise InputError(
                f"{path} has SHA-256 {actual}, but {who} {digest}; download it again or correct the digest"
            )


def broken_part(file: Path | BinaryIO) -> str | None:
    """The name of the first damaged file in the archive, by its CRC, which torch does not check."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except (*DAMAGED, zipfile.BadZipFile, zlib.error, OSError) as error:
        return f"({error})"


def _other_archive(path: Path) -> tuple[str, str]:
    """The kind of a ZIP archive that holds no tensors by name, and the next step; empty if it may hold them."""
    with zipfile.ZipFile(path) as archive:
        parts = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in parts:
        return "is a TorchScript program", "save the tensors alone, with `torch.save(module.state_dict(), FILE)`"
    if "data.pkl" not in parts:
        return "is a ZIP archive of other files", "give a file that `torch.save` wrote (.pt or .pth)"
    return "", ""


def read_official(path: str | Path, sha256: str | None = None, layouts: Sequence[str] = LAYOUTS) -> dict[str, Tensor]:
    """The tensors of `read_with_options`."""
    return read_with_options(path, sha256, layouts)[0]


def read_with_options(
    path: str | Path, sha256: str | None = None, layouts: Sequence[str] = LAYOUTS
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors by name of a published file, under one of `layouts`, or flat; on the CPU; and its training's options.

    No code in the file is run. Where the file has several sets of weights, a message says which one is taken.

    Args:
        path: the file. If PATH.sha256 lies next to it (as `sha256sum` writes it), that digest is checked too.
        sha256: what the file's bytes must have; None = whatever they have.
        layouts: names of sets of weights, the one to take first.

    Raises:
        InputError: it is a web page, a git-lfs pointer, cut off, another format, or holds something else than tensors.
    """
    path = Path(path)
    _check_bytes(path, sha256)
    try:
        # LlamaGen's own training scripts keep their command line with the tensors
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        what = f"the code of {forbidden[1]}" if forbidden else "something that no pickle of tensors has"
        raise InputError(
            f"{path} holds more than tensors, or is damaged: it asks for {what} and was not read; download it again "
            "from its publisher, or keep the tensors alone with `torch.save`"
        ) from None
    except DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged ({type(error).__name__}: {reason}); download it again") from None
    options: Mapping[str, Any] = {}
    if isinstance(content, dict):
        options = vars(found) if isinstance(found := content.get("args"), argparse.Namespace) else {}
        content = _weights(content, path, layouts)
    tensors = content if isinstance(content, dict) else {}
    wrong = [str(n) for n, tensor in tensors.items() if not (isinstance(n, str) and isinstance(tensor, Tensor))]
    if not tensors or wrong:
        found = f"entries that are none ({', '.join(wrong[:5])})" if wrong else f"a {type(content).__name__}"
        expected = f"tensors by name, flat or under one of {', '.join(layouts)}"
        raise InputError(f"{path} has {found} where {expected} are expected; is it a file of another model?")
    return tensors, options


def _weights(content: dict, path: Path, layouts: Sequence[str]) -> dict:
    """The first of `layouts` in the content of the file `path`, or all of it if it has none."""
    sets = {str(key): value for key, value in content.items() if isinstance(value, dict) and value}
    found = next((key for key in layouts if key in sets), None)
    if found is None:
        return content
    left = [k for k, value in sets.items() if k != found and all(isinstance(t, Tensor) for t in value.values())]
    if left:
        print(f"{path}: took the weights under '{found}', left those under {', '.join(left)}", file=sys.stderr)
    return sets[found]


def fill(network: nn.Module, given: Mapping[str, Tensor], path: str | Path) -> None:
    """Copies `given`, which was read from `path`, into `network`.

    Raises:
        InputError: it is another network, names or shapes differ, or a number is not finite here.
    """
    own = network.state_dict()
    if not own.keys() & given.keys():
        found, expected = (
            next((what for name, what in _NETWORKS.items() if name in names), "another network")
            + f" ({', '.join([*names][:2])}, ...)"
            for names in (given, own)
        )
        raise InputError(f"{path} holds {found}, expected {expected}: give the file of the latter")
    problems = {
        "missing": [name for name in own if name not in given],
        "not of this model": [name for name in given if name not in own],
        "of another shape": [
            f"{name} {list(given[name].shape)} instead of {list(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ],
    }
    problems["not floating-point"] = [
        f"{name} {str(given[name].dtype).removeprefix('torch.')}"
        for name in own
        if name in given and not given[name].is_floating_point()
    ]
    problems["sparse or without numbers"] = [
        name for name in own if name in given and (given[name].layout != torch.strided or given[name].is_meta)
    ]
    lines = [
        f"  {len(names)} {problem}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for problem, names in problems.items()
        if names
    ]
    if lines:
        raise InputError(
            f"{path} does not fit the sizes that were asked for; correct the one or the other:\n" + "\n".join(lines)
        )
    tensors = {name: given[name].to(own[name].dtype) for name in own}
    check_finite(tensors, path, "download it again, or take a checkpoint from before its training broke")
    network.load_state_dict(tensors, strict=True)


def import_llamagen(path: str | Path, config: LlamaGenConfig, sha256: str | None = None) -> LlamaGen:
    """A LlamaGen of these sizes with published weights (c2i_B_256.pt and its kin), in eval mode.

    Args:
        config: without `num_classes`, the file gives the number of classes (LlamaGen's: 1000).

    Raises:
        InputError: as `read_official` or `fill`, the file knows no classes, or says that it was made for another grid.
    """
    given, options = read_with_options(path, sha256)
    side, source = _side(given.pop("freqs_cis", None), options)
    if side and side**2 != config.tokens:
        raise InputError(
            f"{path} was made for {side} x {side} tokens per image, not for {' x '.join(map(str, config.grid))}, by "
            f"{source}; give the file of the images' resolution (c2i_B_256.pt, c2i_B_384.pt), or correct the resolution"
        )
    named = re.match(r"c2i_[A-Za-z0-9]+_([0-9]{2,4})(?![0-9])", Path(path).name)
    if not side and named and (int(named[1]) // DOWNSAMPLE) ** 2 != config.tokens:
        print(
            f"warning: {path} is called after {named[1]} pixels, and is read for {' x '.join(map(str, config.grid))} "
            "tokens per image; nothing in it says which of the two is right",
            file=sys.stderr,
        )
    table = given.get("cls_embedding.embedding_table.weight")
    if config.num_classes is None and table is not None and table.ndim == 2:
        if len(table) < 2:
            raise InputError(
                f"{path} knows no classes: its table of them has {len(table)} rows, expected one for each class and "
                "one for none; give a class-conditional model (c2i_B_256.pt)"
            )
        config = config.model_copy(update={"num_classes": len(table) - 1})
    model = LlamaGen(config)
    fill(model, given, path)
    return model.eval()


def _side(rotations: Any, options: Mapping[str, Any]) -> tuple[int, str]:
    """Tokens per side of the images that weights were trained on, and what says so; 0 if nothing does.

    Other tensors have the same shapes whatever the images' size.

    Args:
        rotations: of the class token and of a square of tokens, where the file has them.
        options: of the training.
    """
    tokens = len(rotations) - 1 if isinstance(rotations, Tensor) and rotations.ndim == 3 else 0
    side = math.isqrt(max(tokens, 0))
    if side and side**2 == tokens:
        return side, "its rotations (freqs_cis)"
    pixels, downsample = options.get("image_size"), options.get("downsample_size", DOWNSAMPLE)
    if isinstance(pixels, int) and isinstance(downsample, int) and min(pixels, downsample) > 0:
        return pixels // downsample, f"the options of its training (image_size {pixels})"
    return 0, ""
