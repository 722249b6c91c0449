"""Experiments composed of files and single settings, and the file and line of each setting."""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpar.errors import InputError, did_you_mean
from dpar.experiment.reading import check_size, read_node, read_value
from dpar.experiment.settings import Autoencoder
from dpar.files import unmarked

CHECKOUT = Path(__file__).resolve().parents[2]
EXTENDS = "extends"
CHANGES = "set"
"""The key of Snakemake's `--config` with the changes of `dpar run --set`, a list of `KEY=VALUE`."""

# Two ways to say one thing: who says it one way takes the place of the other way in the file below.
_EITHER = (
    ("steps", "epochs"),
    ("threshold", "p_avg"),
    ("weights", "training"),
    ("generated", "train"),
    ("val", "held_out"),
)
# A variant takes the place of the sizes below it.
_SIZES = {"architecture", "width", "heads", "encoder_layers", "layers", "decoder_layers", *Autoencoder.model_fields}
_ROW = re.compile(r"(tables|figures)\.(.+?), row (\{.*\})(?:: (\S+))?")
_KEYS_WITH_DOTS = re.compile(r"(tables\.[^.]+\.(?:base|vary))\.(.+)")


@dataclass(frozen=True)
class Source:
    """Settings from one place: a file with its lines, or the command line without."""

    where: str
    values: Mapping[str, Any]
    node: yaml.Node | None = None


@dataclass(frozen=True)
class Places:
    """The sources of an experiment, the one that decides first."""

    sources: tuple[Source, ...] = ()

    def over(self, where: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> "Places":
        """The same under what `where` changed of the settings."""
        return Places((Source(where, _changed(before, after)), *self.sources))

    def of(self, key: Sequence[str | int]) -> str | None:
        """The place of a setting, as `FILE:LINE`; of the group that it belongs to where nobody says it."""
        return self._found(key)[1]

    def _found(self, key: Sequence[str | int]) -> tuple[int, str | None]:
        """The number of names of `key` that are written somewhere, and the place of the last of them.

        Of a group that several changes on the command line say, any of them may be meant.
        """
        found: list[tuple[int, str, bool]] = []
        for source in self.sources:
            depth, line, is_group = _reach(source, key)
            found.append((depth, f"{source.where}:{line}" if line else source.where, source.node is None))
            if not is_group:  # which replaces what the sources below say
                break
        if not found:
            return 0, None
        most = max(depth for depth, _, _ in found)
        reached = [(place, is_change) for depth, place, is_change in found if depth == most]
        changes = [place for place, is_change in reached if is_change]
        return most, ", ".join(reversed(changes)) or reached[0][0]

    def of_key(self, key: str) -> str | None:
        """The same for a setting in words, such as `images.val` or `tables.t, row {...}: sampling.top_k`."""
        values = {} if not self.sources else self.sources[0].values
        if (row := _ROW.fullmatch(key)) and (number := self._row(row[1], row[2], row[3])) is not None:
            group, name, setting = row[1], row[2], row[4]
            own: list[str | int] = [group, name, "rows", number]
            ways = [[*own, setting], [group, name, "vary", setting], [group, name, "base", setting]] if setting else []
            said = (place for way in ways for depth, place in [self._found(way)] if depth == len(way))
            return next(said, None) or self.of(own)
        return self.of(_split(re.split(r", row |: |\s", key)[0], values))

    def of_either(self, key: str, other: str | None) -> str | None:
        """The place of a setting, or that of another that it does not fit, if it is the other that was said last."""
        at, path = self.of_key(key), (other or "").split(".")
        for source in self.sources:
            if at is not None and at.startswith(source.where):
                break
            if _reach(source, path)[0] == len(path):
                return self.of(path)
        return at

    def _row(self, group: str, name: str, text: str) -> int | None:
        """The number of the written row that the row in `text` came of: the one that says most of its settings."""
        try:
            wanted = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # an infinity, which is no literal
            return None
        for source in self.sources:
            table = (source.values.get(group) or {}).get(name) if isinstance(source.values, Mapping) else None
            rows = table.get("rows") if isinstance(table, Mapping) else None
            if isinstance(rows, list):
                fits = [(len(row), -i) for i, row in enumerate(rows) if row.items() <= wanted.items()]
                return -max(fits)[1] if fits else None
        return None


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `after` that differ, in their groups."""
    found = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _changed(old, value)
            if not value:
                continue
        elif value == old:
            continue
        found[key] = value
    return found


def compose(
    files: Iterable[str | Path], changes: Sequence[str] = (), config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Places]:
    """The settings of `files`, each over those before it and over what it extends, and where each is written.

    Args:
        changes: single settings over them, `KEY=VALUE` with the value in YAML.
        config: what Snakemake's `--config` says, over the files; its key `set` holds changes too.

    Raises:
        InputError: a file is missing or no YAML, files extend each other in a circle, or a change is none.
    """
    values: dict[str, Any] = {}
    sources: list[Source] = []
    for file in files:
        for source in _chain(Path(file)):
            values = merged(values, source.values)
            sources.insert(0, source)
    own = {key: value for key, value in (config or {}).items() if key != CHANGES}
    if own:
        values = merged(values, own)
        sources.insert(0, Source("--config", own))
    for change in [*_listed((config or {}).get(CHANGES)), *changes]:
        said = _change(change, values)
        values = merged(values, said)
        sources.insert(0, Source(f"--set {change}", said))
    return values, Places(tuple(sources))


def merged(below: Any, above: Any) -> Any:
    """`above` over `below`: groups are merged key by key, all else is replaced; a group that is null is left away."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return dict(above) if isinstance(above, Mapping) else above
    result = dict(below)
    for pair in _EITHER:
        for said, other in (pair, pair[::-1]):
            if above.get(said) is not None and other not in above:
                result.pop(other, None)
    if above.get("variant") is not None:
        result = {key: value for key, value in result.items() if key not in _SIZES}
    for key, value in above.items():
        if value is None and isinstance(below.get(key), Mapping):
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _chain(file: Path) -> list[Source]:
    """The sources of a file: what it extends, the farthest first, then itself."""
    sources: list[Source] = []
    seen: list[Path] = []
    path: Path | None = file
    while path is not None:
        if path.resolve() in seen:
            circle = " extends ".join(map(str, [*(s.where for s in reversed(sources)), path]))
            raise InputError(f"{circle}: a circle, in which nothing is said; remove one `extends`")
        seen.append(path.resolve())
        values, node = read_node(path)
        if not isinstance(values, dict):
            raise InputError(f"{path} is not a valid experiment: settings by name are expected, as in config/demo.yaml")
        check_size(values, str(path))
        below = values.pop(EXTENDS, None)
        values = unmarked(values)
        if sources:
            values.pop("name", None)  # of the folder of results, which no other experiment may take
        sources.insert(0, Source(str(path), values, node))
        path = None if below is None else _extended(below, path, f"{path}:{_reach(sources[0], [EXTENDS])[1]}")
    return sources


def _extended(named: Any, by: Path, where: str) -> Path:
    """The file that `by` extends: counted from its own folder, or from the checkout."""
    if not isinstance(named, str):
        raise InputError(f"{where}: extends: found {named!r}; expected one file, such as config/base/tiny.yaml")
    places = [by.parent / Path(named).expanduser(), CHECKOUT / named]
    for place in places:
        if place.is_file():
            return place
    known = [str(path.relative_to(CHECKOUT)) for path in sorted((CHECKOUT / "config").glob("**/*.yaml"))]
    raise InputError(
        f"{where}: extends: {named} is neither below {by.parent} nor below {CHECKOUT}{did_you_mean(named, known)}; "
        f"shipped are {', '.join(path for path in known if 'base/' in path)}"
    )


def _listed(changes: Any) -> list[str]:
    if changes is None or isinstance(changes, list):
        return [str(change) for change in changes or ()]
    return [str(changes)]


def _change(change: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `KEY=VALUE` is, nested as in a file."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {change}: expected KEY=VALUE, such as --set sampling.cfg_scale=2.5")
    parts = _split(key.strip(), values)
    said: Any = read_value(text, f"--set {change}")
    place: Any = values
    for part in parts[:-1]:
        place = place.get(part) if isinstance(place, Mapping) else place
    if isinstance(place, list):
        raise InputError(f"--set {change}: {'.'.join(parts[:-1])} is a list, which is set as a whole: [a, b, ...]")
    for part in reversed(parts):
        said = {part: said}
    return said


def _split(key: str, values: Mapping[str, Any]) -> list[str]:
    """The names in a key with dots; a name that has dots itself is known by the settings that are there."""
    rest, parts, place = key, [], values
    if written := _KEYS_WITH_DOTS.fullmatch(key):
        return [*written[1].split("."), written[2]]
    while rest:
        known = [name for name in place if isinstance(name, str)] if isinstance(place, Mapping) else []
        part = max((name for name in known if f"{rest}.".startswith(f"{name}.")), key=len, default=rest.split(".")[0])
        parts.append(part)
        place = place.get(part, {}) if isinstance(place, Mapping) else {}
        rest = rest[len(part) + 1 :]
    return parts


def _reach(source: Source, key: Sequence[str | int]) -> tuple[int, int | None, bool]:
    """The number of names of `key` that a source says, the line of the last of them, and whether that is a group."""
    place: Any = source.values if source.node is None else source.node
    line = None if source.node is None else source.node.start_mark.line + 1
    for depth, name in enumerate(key):
        found = _inside(place, name)
        if found is None:
            return depth, line, isinstance(place, Mapping | yaml.MappingNode)
        place, node = found
        line = None if node is None else node.start_mark.line + 1
    return len(key), line, isinstance(place, Mapping | yaml.MappingNode)


def _inside(place: Any, name: str | int) -> tuple[Any, yaml.Node | None] | None:
    """The value under a name or number, in values or in nodes, and of the latter the one that says its line."""
    if isinstance(place, yaml.MappingNode):
        said = [pair for pair in place.value if isinstance(pair[0], yaml.ScalarNode) and pair[0].value == str(name)]
        return (said[-1][1], said[-1][0]) if said else None
    if isinstance(place, Mapping):
        return (place[name], None) if name in place else None
    entries = place.value if isinstance(place, yaml.SequenceNode) else place
    if not isinstance(entries, list) or not isinstance(name, int) or name >= len(entries):
        return None
    return entries[name], entries[name] if isinstance(place, yaml.SequenceNode) else None
