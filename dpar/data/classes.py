"""The classes of a model or of images: their numbers, and the names that people choose and read."""

import csv
import difflib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from dpar.data.images import ImageIndex
from dpar.data.sources.source import ClassNames, enumerated
from dpar.errors import InputError, shown
from dpar.experiment.settings import IMAGENET, Images
from dpar.files import fields_of, read_json

_LISTED = 50  # names in a refusal
_NAME = "name:"  # before a name that also is a number, a range or `all`


@dataclass(frozen=True)
class Classes:
    """So many classes, counted from 0, and the name of each that has one.

    Attributes:
        names: by number; None where there are none at all.
    """

    count: int
    names: ClassNames | None = None

    @classmethod
    def of_images(cls, images: Images, index: ImageIndex | Path | None) -> "Classes":
        """The classes of an experiment's images: by its own list of names, else as the images are called.

        Args:
            index: of the images, or its file; without it, or where that is missing, only a list gives names.

        Raises:
            InputError: the list of names cannot be read, names another number of classes, or does not fit the names
                that the images have.
        """
        if isinstance(index, Path):
            index, names = (index, indexed_names(index)) if index.exists() else (None, None)
        else:
            names = index.images.classes if index is not None else None
        if images.classes is not None:
            found = None if index is None else names or [None] * images.num_classes
            return cls(images.num_classes, listed_names(images.classes, images.num_classes, found))
        return cls(images.num_classes, names and plain_names(names))

    @classmethod
    def of_model(cls, folder: Path, config: dict[str, Any]) -> "Classes":
        """The classes that a model draws: as its config.json says, else as the index of its results does.

        Args:
            config: its config.json.

        Raises:
            InputError: it draws no classes, or names another number of them.
        """
        count, names = config["model"].get("num_classes"), config["provenance"].get("classes")
        if config["kind"] not in ("dpar", "llamagen") or not isinstance(count, int):
            raise InputError(f"{folder} holds a {config['kind']} that draws no classes; give a DPAR or a baseline")
        if names is None:
            found = (parent / "index" / "train.json" for parent in folder.resolve().parents)
            index = next((path for path in found if path.is_file()), None)
            with suppress(InputError):  # a model of before names were kept draws without them too
                names = index and indexed_names(index)
        if names is not None and len(names) != count:
            raise InputError(
                f"{folder} draws {count} classes, but {len(names)} names are kept for them; export it anew"
            )
        return cls(count, names and plain_names(names))

    def title(self, label: int) -> str:
        """The class in a figure or a sentence: its name, or `class 3` where it has none."""
        name = self.names[label] if self.names and 0 <= label < len(self.names) else None
        return f"class {label}" if name is None else shown(name)

    def listed(self, most: int = _LISTED) -> str:
        """The classes in words, the first of them with their names."""
        if not self.names:
            return f"{self.count} classes, 0 to {self.count - 1}"
        return enumerated([self.title(label) for label in range(self.count)], most)

    def paired(self, found: ClassNames | None) -> str:
        """The same; where the images call a class otherwise, all as `name of the images=name`."""
        if not self.names or found is None or list(found) == list(self.names):
            return self.listed()
        own = [other if (other := found[label]) is not None else f"class {label}" for label in range(self.count)]
        return enumerated([f"{own[label]}={self.title(label)}" for label in range(self.count)], _LISTED)

    def repeated(self) -> str:
        """The names that several classes have, with these classes' numbers; empty if there are none."""
        labels: dict[str, list[str]] = {}
        for label, name in enumerate(self.names or ()):
            if name is not None:
                labels.setdefault(name, []).append(str(label))
        return enumerated([f"{name} ({', '.join(own)})" for name, own in labels.items() if len(own) > 1])

    def misnumbered(self) -> str:
        """The names that are numbers of classes, but not their own: `10` of class 2; empty if there are none."""
        numbered = [(i, name) for i, name in enumerate(self.names or ()) if name and re.fullmatch("[0-9]{1,9}", name)]
        wrong = [f"{name} has label {label}" for label, name in numbered if label != int(name) < self.count]
        return enumerated(wrong, 3)

    def example(self, count: int) -> str:
        """The first classes as `labels` takes them, by name if that needs no explanation."""
        first = range(min(count, self.count))
        names = [self.title(label) for label in first]
        plain = all(re.fullmatch(r"[^\W\d][\w ]*", name) and self._named(name) == [i] for i, name in enumerate(names))
        return ",".join(names if plain and "all" not in names else map(str, first))

    def label(self, name: str) -> int:
        """The number of the class with that name, or with that WordNet id.

        Raises:
            InputError: there is none, or there are several.
        """
        found = self._named(name)
        if len(found) > 1:
            raise InputError(f"{shown(name)} is the name of the classes {', '.join(map(str, found))}; give a number")
        if not found:
            raise self._unknown(name)
        return found[0]

    def labels(self, text: str) -> list[int]:
        """The classes that `text` lists, in its order.

        It lists names, numbers, ranges (`0-9`) and `all` between commas; a name with commas stands in double quotes,
        and `name:` before one that could be a number.

        Raises:
            InputError: an unknown or ambiguous name, or a number that no class has.
        """
        if self._named(text):
            return self._chosen(text)
        try:
            parts = next(csv.reader([text], skipinitialspace=True, strict=True))
        except (csv.Error, StopIteration):
            raise InputError(
                f"labels {shown(text)!r}: expected names or numbers of classes with commas between"
            ) from None
        return [label for part in parts or [""] for label in self._chosen(part if self._named(part) else part.strip())]

    def _chosen(self, part: str) -> list[int]:
        named, numbers = self._named(part), self._numbered(part)
        if part.startswith(_NAME) and not named:
            return [self.label(part.removeprefix(_NAME))]
        if named and numbers is not None and numbers != named:
            raise InputError(
                f"{shown(part)} is the name of class {named[0]} and also means the classes numbered so: "
                f"write {_NAME}{shown(part)}, or {numbers[0]}-{numbers[-1]} for the numbers"
            )
        if numbers is None:
            return [self.label(part)]
        if outside := [label for label in numbers if not 0 <= label < self.count]:
            raise InputError(
                f"label {outside[0]} is out of range; the model knows the classes 0 to {self.count - 1}"
                + (f": {self.listed()}" if self.names else "")
            )
        return numbers

    def _named(self, name: str) -> list[int]:
        known = imagenet_names().get(name, name)
        return [label for label, other in enumerate(self.names or ()) if other is not None and other in (name, known)]

    def _numbered(self, part: str) -> list[int] | None:
        """The numbers that a part of a list means, if it is no name."""
        if part == "all":
            return list(range(self.count))
        found = re.fullmatch(r"(-?[0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        if found is None:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise InputError(f"labels {part}: the range runs backwards; write {last}-{first}")
        return list(range(first, min(last, max(first, self.count)) + 1))  # one too many is enough to be refused

    def _unknown(self, name: str) -> InputError:
        if not self.names:
            return InputError(
                f"there is no class {shown(name)!r}: this model knows its {self.count} classes by their numbers alone, "
                f"0 to {self.count - 1}"
            )
        known = [other for other in self.names if other is not None]
        wanted = name.casefold()
        written = difflib.get_close_matches(wanted, [other.casefold() for other in known], n=2)
        near = [
            n for n in known if n.casefold() in written or difflib.get_close_matches(wanted, _words(n), cutoff=0.85)
        ]
        near = list(dict.fromkeys(near))[:4]
        meant = f"; did you mean {' or '.join(map(shown, near))}?" if near else "."
        return InputError(f"there is no class {shown(name)!r}{meant} The classes are {self.listed()}")


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.casefold())


def indexed_names(path: Path) -> ClassNames | None:
    """The names of the classes in an index of images, without reading the lists of images.

    Raises:
        InputError: it is no index.
    """
    with fields_of(path), open(path, encoding="utf-8") as index:
        for line in index:
            key, _, value = line.partition(": ")
            if key == '"classes"':
                return json.loads(value.rstrip().rstrip(","))
            if key == '"labels"':
                break
    return ImageIndex.load(path).images.classes  # older ones have none, or know them by their folders


def listed_names(path: str, count: int, found: ClassNames | None = None) -> ClassNames | None:
    """The names in a file: a JSON list, a line per class, or a JSON object of the images' names and those to show.

    Args:
        path: of the file; `imagenet` stands for ImageNet's 1,000.
        found: names that the images have, by label; null = not known, so that an object gives none.

    Raises:
        InputError: it cannot be read, has another number of names, or a list seems to be in another order than the
            images' classes.
    """
    if path == IMAGENET:
        names: Any = list(imagenet_names().values())
    else:
        file = Path(path).expanduser()
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"images.classes: {path} cannot be read ({reason}); give a file of names in UTF-8"
            ) from None
        try:
            names = read_json(file) if text.lstrip()[:1] in ("[", "{") else [line.strip() for line in text.splitlines()]
        except InputError as error:
            raise InputError(f"images.classes: {str(error).partition(';')[0]}; correct the file") from None
    if isinstance(names, dict):
        return found and _shown_names(path, names, found)
    wrong = [i for i, name in enumerate(names) if not (isinstance(name, str) and name.strip())]
    if len(names) != count or wrong:
        found = f"entry {wrong[0]} is no name" if wrong else f"{len(names)} names"
        raise InputError(
            f"images.classes: {path} holds {found}, expected a name for each of the {count} classes, in the order of "
            "their numbers; correct the file, or images.num_classes"
        )
    if found is not None:
        _check_order(path, names, [*found, *[None] * count][:count])
    return names


def _shown_names(path: str, names: dict[str, Any], found: ClassNames) -> ClassNames:
    """The names to show, by label, by an object of the images' names and these."""
    own = [name for name in found if name is not None]
    missing, unknown = [name for name in own if name not in names], [name for name in names if name not in own]
    wrong = [name for name in names if not (isinstance(names[name], str) and names[name].strip())]
    if missing or unknown or wrong:
        said = [
            f"{what} {enumerated(listed)}"
            for what, listed in (("lacks", missing), ("knows", unknown), ("has no name to show for", wrong))
            if listed
        ]
        raise InputError(
            f"images.classes: {path} {', and '.join(said)}; the classes of the images are "
            f"{enumerated(own, _LISTED) or 'numbers without names'}: expected a JSON object with a name to show for "
            "each of them, or a list where they have no names"
        )
    return [name and names[name] for name in found]


def _check_order(path: str, names: ClassNames, found: ClassNames) -> None:
    """Raises `InputError` if a list that renames the images' classes seems to be in another order than these."""
    plain = plain_names(found)
    if list(names) in (list(found), list(plain)):
        return
    known = [{_letters(own[label]) for own in (found, plain)} - {""} for label in range(len(found))]
    places = {name: label for label, alike in enumerate(known) for name in alike}
    at_home = [_letters(name) in alike for name, alike in zip(names, known, strict=True)]
    moved = [i for i, name in enumerate(names) if not (at_home[i] or at_home[places.get(_letters(name), i)])]
    moved = [i for i in moved if _letters(names[i]) in places]  # a name that two classes may have is in none's place
    own = [name for name in found if name is not None]
    numbers = [[int(number) for number in re.findall("[0-9]+", name)] for name in own]
    if moved:
        other = found[places[_letters(names[moved[0]])]]
        reason = f"calls {shown(str(found[moved[0]]))} {shown(str(names[moved[0]]))}, as if it were {shown(str(other))}"
    elif len({re.sub("[0-9]+", "0", name) for name in own}) == 1 and numbers != sorted(numbers):
        reason = "is a list, and the numbers in the names of the images are not in order"
    else:
        return
    example = json.dumps(dict.fromkeys(own[:2], "..."))
    raise InputError(
        f"images.classes: {path} {reason}; classes are counted as the images have them: {enumerated(own, _LISTED)}; "
        f"write the name to show for each of these as a JSON object, {shown(example)}, or leave `images.classes` out"
    )


def _letters(name: str | None) -> str:
    """A name without case, and with one space for all signs between letters."""
    return "" if name is None else re.sub(r"[\W_]+", " ", name.casefold()).strip() or name


def plain_names(names: ClassNames) -> ClassNames:
    """The names; where they are ImageNet's WordNet ids, or its lists of synonyms in order, a word for each."""
    known = imagenet_names()
    synonyms = [name and name.partition(",")[0] for name in names]  # Hugging Face's: `tench, Tinca tinca`
    if synonyms == [name.partition(" (")[0] for name in known.values()]:
        return list(known.values())
    given = [name for name in names if name is not None]
    if not given or not all(name in known for name in given):
        return names
    return [name and known[name] for name in names]


@cache
def imagenet_names() -> dict[str, str]:
    """WordNet id -> name of ImageNet's 1,000 classes, in the order of their numbers."""
    lines = (files("dpar.data") / "imagenet.txt").read_text("utf-8").splitlines()
    return {identifier: name for identifier, _, name in (line.partition(" ") for line in lines)}
