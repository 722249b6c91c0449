"""The paths that an experiment names: where they count from, what is made from each, and what lies there."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpar.data.arrays import foreign, read_npz
from dpar.errors import InputError
from dpar.experiment.cells import SampleCell
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import IMAGENET, Experiment
from dpar.files import fields_of, matching, read_json, sha256_file

SPLITS = ("train", "val")


@dataclass(frozen=True)
class UserPath:
    """A path that an experiment names: its key, what it must be, and the outputs that are made from it."""

    key: str
    path: str
    kind: str  # `file`, `folder` or `files`, a pattern
    outputs: tuple[str, ...]
    sha256: str | None = None


def user_paths(experiment: Experiment, cells: Iterable[SampleCell]) -> Iterator[UserPath]:
    """The paths that an experiment names, each with the outputs that are made from it, below the results.

    Args:
        cells: the sets of samples that the experiment draws.
    """
    images, tokenizer, evaluation = experiment.images, experiment.tokenizer, experiment.evaluation
    for split in SPLITS if images.generated is None else ():
        kind = "folder" if images.source == "folder" else "files"
        key = "images.train" if images.held_out is not None else f"images.{split}"
        yield UserPath(key, images.path(split) or "", kind, tuple(_made_from_images(experiment, split)))
    if images.classes not in (None, IMAGENET):
        yield UserPath("images.classes", images.classes, "file", ("index/train.json",))
    if tokenizer.weights is not None:
        made = ("tokenizer/model.safetensors",)
        yield UserPath("tokenizer.weights", tokenizer.weights, "file", made, tokenizer.weights_sha256)
    if tokenizer.training and tokenizer.training.perceptual_weight > 0 and tokenizer.training.perceptual_network:
        path = tokenizer.training.perceptual_network
        yield UserPath("tokenizer.training.perceptual_network", path, "file", ("tokenizer/model.safetensors",))
    for folder, network in experiment.networks.items():
        if network.weights is not None:
            key, made = f"{folder.replace('/', '.')}.weights", (f"{folder}/model.safetensors",)
            yield UserPath(key, network.weights, "file", made, network.weights_sha256)
    features = ["features/reference.npz"]
    if evaluation.reference not in SPLITS:
        yield UserPath("evaluation.reference", evaluation.reference, "file", tuple(features))
    if evaluation.extractor != "classifier":
        features += [f"features/{cell.slug}/seed{seed}.npz" for cell in cells for seed in cell.sampling.seeds]
        key = "evaluation.inception_weights" if evaluation.inception_weights else "evaluation.extractor"
        path = evaluation.inception_weights or evaluation.extractor
        yield UserPath(key, path, "file", ("tokenizer/report.json", *features))


def _made_from_images(experiment: Experiment, split: str) -> Iterator[str]:
    suffix = {"parquet": "parquet", "webdataset": "tar"}[experiment.codes.format]
    yield f"index/{split}.json"
    yield from (f"codes/{split}/{i:05d}.{suffix}" for i in range(getattr(experiment.codes, f"{split}_shards")))
    if experiment.tokenizer.weights is None:
        yield "tokenizer/model.safetensors"
    if experiment.evaluation.extractor == "classifier":
        yield "classifier/model.safetensors"
    if experiment.evaluation.reference == split:
        yield "features/reference.npz"
    if split == "val":
        yield "tokenizer/report.json"
        yield from (f"figures/{name}.png" for name in ("completions", "entropy_maps", "samples"))


def expect_same_files(experiment: Experiment, results: Path) -> None:
    """Compares the files that an experiment names with those that its results were made from.

    That is weights, networks that measure, and a reference. No rule watches them: one that is another now is said, as
    images that changed are, and nothing is made from it.

    Raises:
        InputError: the experiment states the digest of a file that is not the imported one.
    """
    made_with = [(wanted, *_made_with(wanted, results)) for wanted in user_paths(experiment, ())]
    named = _named_before(results) if any(sha256 for *_, sha256 in made_with) else set()
    for wanted, path, sha256 in made_with:
        if sha256 is None or wanted.path not in named:  # by another setting it is made anew
            continue
        made = path if wanted.key == "evaluation.reference" else path.parent
        cure = f"delete {made} to make it anew, and all that is made with it"
        if wanted.sha256 not in (None, sha256):
            raise InputError(
                f"{wanted.key}_sha256 is {wanted.sha256}, but {made} was imported from a file with the SHA-256 "
                f"{sha256}: {cure}, or put the digest back"
            )
        file = Path(from_jobs(wanted.path, results.parents[1]))
        if file.is_file() and file.stat().st_ctime >= path.stat().st_mtime and sha256_file(file) != sha256:
            print(f"{wanted.key}: {wanted.path} is another file than {made} was made from; {cure}", file=sys.stderr)


def _made_with(wanted: UserPath, results: Path) -> tuple[Path, str | None]:
    """A file of the results that says from what it was made, and the SHA-256 of the user's file as it says it."""
    features = {"evaluation.reference": "source_digest", "evaluation.extractor": "extractor_sha256"}
    features |= {"evaluation.inception_weights": features["evaluation.extractor"]}
    if (name := features.get(wanted.key)) is not None and not wanted.path.endswith(".json"):  # an index has its own
        path = results / "features" / "reference.npz"
        with suppress(InputError), foreign(path, "file of features", "make it again"):
            return path, json.loads(str(read_npz(path, ("conditions",))["conditions"])).get(name)
        return path, None
    path = (results / wanted.outputs[0]).with_name("config.json")
    if wanted.key.rpartition(".")[2] not in ("weights", "perceptual_network") or not path.is_file():
        return path, None
    with fields_of(path):
        origin = read_json(path, kind=dict)["provenance"]
        if wanted.key.endswith("perceptual_network"):
            return path, origin.get("perceptual_network")
        return path, origin.get("weights_sha256") or (origin.get("weights") or {}).get("sha256")


def _named_before(results: Path) -> set[str]:
    """The files that the last run into the results named; empty where that cannot be read."""
    with suppress(InputError):
        before = load_experiment(results / "experiment.json")
        return {path.path for path in user_paths(before, ())}
    return set()


def from_jobs(path: str, directory: Path) -> str:
    """A path of the user's from the folder in which the jobs run."""
    return os.path.join(directory, os.path.expanduser(path))


def found_instead(path: str, kind: str) -> str | None:
    """Description of the thing found instead of a file, a folder or files; None if they are there."""
    if kind == "files" and not os.path.isdir(path):
        files = [file for file in matching(path) if os.path.isfile(file)]
        empty = [file for file in files if os.path.getsize(file) == 0]
        return "which matches no file" if not files else f"of which {empty[0]} is empty" if empty else None
    if not os.path.lexists(path):
        return "which does not exist"
    if kind == "folder":
        return "which is no folder" if not os.path.isdir(path) else None if os.listdir(path) else "which is empty"
    if not os.path.isfile(path):
        return "which is a folder" if os.path.isdir(path) else "which is no file"
    return None if os.path.getsize(path) else "which is empty"


# How files begin, by suffix: archives of PyTorch and NumPy, and PyTorch's older pickles.
_BEGINNINGS = {**dict.fromkeys((".pt", ".pth", ".ts"), (b"PK\3\4", b"\x80")), ".npz": (b"PK\3\4",)}


def other_kind(path: str) -> str | None:
    """Description of a file that is not of the kind that its suffix says; None if it is, or if nothing is known."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file (`git lfs pull` fetches it)"
    expected = _BEGINNINGS.get(os.path.splitext(path)[1])
    if expected is None or start.startswith(expected):
        return None
    return "a web page" if start.lstrip()[:1] == b"<" else "which does not begin as such a file does"
