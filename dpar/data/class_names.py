"""Class numbers by name, so that held-out images have the labels of the training images."""

from collections.abc import Sequence

import numpy as np

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
        return images
    used = np.unique(images.labels).tolist()
    nameless = [label for label in used if not 0 <= label < len(images.classes) or images.classes[label] is None]
    if nameless:
        raise InputError(
            f"label {nameless[0]} of {images.path} has no name among {_listed(images.classes)}; "
            "correct the label, or the names of the classes"
        )
    numbers = np.full(len(images.classes), -1)
    if any(images.classes[label] != (known[label] if label < len(known) else None) for label in used):
        numbers[used] = _places([images.classes[label] or "" for label in used], images, known)
    else:
        numbers[used] = used
    return images.numbered(numbers[images.labels], known)


def _places(names: Sequence[str], images: ImageSource, known: ClassNames) -> list[int]:
    """The labels of these classes among the training images'."""
    twice = sorted({n for n in names if known.count(n) > 1 or names.count(n) > 1})
    if twice:
        raise InputError(
            f"the class name {shown(twice[0])} stands more than once in {images.path} or among the training images, "
            "so that names do not tell classes apart; give each class a name of its own"
        )
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"{images.path} holds {len(unknown)} classes that the training images lack: {enumerated(unknown)}"
            f"{_case(unknown, known)}; the training images have {_listed(known)}, these have {enumerated(names)}; "
            "classes are matched by name: rename them, or remove those that were not trained on"
        )
    places = {name: label for label, name in enumerate(known)}
    return [places[name] for name in names]


def _case(unknown: Sequence[str], known: ClassNames) -> str:
    """Which of the unknown names differ from a known one by case alone."""
    folded = {name.casefold(): name for name in known if name is not None}
    pairs = [f"{shown(n)} is not {shown(folded[n.casefold()])}" for n in unknown if n.casefold() in folded]
    return f" (names that differ by case are different: {enumerated(pairs, 3)})" if pairs else ""


def _listed(names: ClassNames) -> str:
    return enumerated([name for name in names if name is not None])
