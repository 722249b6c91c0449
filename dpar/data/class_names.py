"""Class numbers by name, so that held-out images have the labels of the training images."""

import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dpar.data.sources.source import ClassNames, ImageSource, enumerated
from dpar.errors import InputError, shown


def numbered_as(images: ImageSource, known: ClassNames | None) -> ImageSource:
    """Held-out images with the labels of the training images' classes; unchanged if either has no names.

    Args:
        images: their labels number the classes in the source's own order.
        known: names of the training images' classes, by label.

    Raises:
        InputError: a class that the training images lack, or an ambiguous name.
    """
    if known is None or images.classes is None:
        if known is not images.classes:
            named, nameless = ("held-out", "training") if known is None else ("training", "held-out")
            print(
                f"warning: the {named} images have names of classes and the {nameless} images have none, so that "
                f"labels are compared as numbers: make sure that both count the classes of {images.path} alike",
                file=sys.stderr,
            )
        return images
    return images.numbered(labels_as(images.labels, images.classes, images.path, known), known)


def labels_as(labels: Int[np.ndarray, "N"], classes: ClassNames, place: str, known: ClassNames) -> Int[np.ndarray, "N"]:
    """The labels by which known classes go that are called alike.

    Args:
        labels: of images.
        classes: the names of their classes, by label.
        place: of the images, for messages.
        known: names of the training images' classes, by label.

    Raises:
        InputError: a class that the training images lack, or an ambiguous name.
    """
    used = np.unique(labels).tolist()
    nameless = [label for label in used if not 0 <= label < len(classes) or classes[label] is None]
    if nameless:
        raise InputError(
            f"label {nameless[0]} of {place} has no name among {_listed(classes)}; "
            "correct the label, or the names of the classes"
        )
    numbers = np.full(len(classes), -1)
    if any(classes[label] != (known[label] if label < len(known) else None) for label in used):
        numbers[used] = _places([classes[label] or "" for label in used], place, known)
    else:
        numbers[used] = used
    return numbers[labels]


def _places(names: Sequence[str], place: str, known: ClassNames) -> list[int]:
    """The labels of these classes among the training images'."""
    twice = sorted({n for n in names if known.count(n) > 1 or names.count(n) > 1})
    if twice:
        raise InputError(
            f"the class name {shown(twice[0])} stands more than once in {place} or among the training images, "
            "so that names do not tell classes apart; give each class a name of its own"
        )
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"{place} holds {len(unknown)} classes that the training images lack: {enumerated(unknown)}"
            f"{_case(unknown, known)}; the training images have {_listed(known)}, these have {enumerated(names)}; "
            "classes are matched by name: rename them, or remove those that were not trained on"
        )
    places = {name: label for label, name in enumerate(known)}
    return [places[name] for name in names]


def _case(unknown: Sequence[str], known: ClassNames) -> str:
    """Which of the unknown names differ from a known one by case, or by the bytes of the same letters, alone."""
    folded = {_folded(name): name for name in known if name is not None}
    pairs = [(name, folded[_folded(name)]) for name in unknown if _folded(name) in folded]
    by_case = [f"{shown(name)} is not {shown(other)}" for name, other in pairs if _written(name) != _written(other)]
    alike = [f"{name!a} is not {other!a}" for name, other in pairs if _written(name) == _written(other)]
    said = f" (names that differ by case are different: {enumerated(by_case, 3)})" if by_case else ""
    return said + (
        f" (names that look the same are different where Unicode composes their letters otherwise: "
        f"{enumerated(alike, 3)})"
        if alike
        else ""
    )


def _written(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _written(_written(name).casefold())


def _listed(names: ClassNames) -> str:
    return enumerated([name for name in names if name is not None])
