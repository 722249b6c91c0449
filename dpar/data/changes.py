"""Changes in the images of a run since they were indexed."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path

from dpar.data.images import ImageIndex
from dpar.data.sources.source import Stamp
from dpar.errors import InputError, shown


def say_changes(results: Path) -> None:
    """Writes the lines of `changes` to standard error."""
    for line in changes(results):
        print(shown(line), file=sys.stderr)


def changes(results: Path) -> Iterator[str]:
    """One line per split whose images differ from the indexed ones, and one for classes that do not match.

    Sizes and dates are compared, not contents: contents are compared whenever an image is read. Generated images
    are not checked.
    """
    names = []
    for split in ("train", "val"):
        path = results / "index" / f"{split}.json"
        try:
            index = ImageIndex.load(path)
        except InputError:
            continue  # not made yet, or damaged, which the stage says that reads it
        names.append(index.images.classes or [])
        if said := _since(index, path, results):
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
            yield f"images of {split} were indexed at {when}; {said}"
    apart = [pair for pair in zip(*names, strict=False) if len(pair) == 2 and None not in pair and pair[0] != pair[1]]
    if apart:
        yield (
            f"{len(apart)} held-out classes have the numbers of other training classes, such as {apart[0][1]} that of "
            f"{apart[0][0]}, in an index from before they were matched by name: delete {path} to number them anew"
        )


def _since(index: ImageIndex, path: Path, results: Path) -> str | None:
    """Differences between the images and their index at `path`; null if there are none."""
    if Path(index.images.path).parent.name == "images" and Path(index.images.path).parent.parent.name == results.name:
        return None
    try:
        with chdir(results.resolve().parents[1]):  # where the stages run
            found = compared(index, type(index.images).stamps(index.images.path), path.stat().st_mtime)
    except (InputError, OSError) as error:
        return f"now they cannot be listed: {error}"
    return found and f"files of {index.images.path} since then: {found}; delete {path} to take that in"


def compared(index: ImageIndex, now: Mapping[str, Stamp], indexed: float) -> str | None:
    """Numbers of new, missing and changed files, in words; null if there are none.

    Args:
        now: the source's files.
        indexed: when the index was written, seconds since 1970.
    """
    names = index.images.stamped()
    sizes = index.sizes or [None] * len(names)
    there = [(now[name], size) for name, size in zip(names, sizes, strict=True) if name in now]
    gone = len(names) - len(there)
    changed = sum(stamp.changed > indexed or size not in (None, stamp.size) for stamp, size in there)
    if index.images.listed is not None:
        new = max(0, len(now) - index.images.listed + gone)
    else:  # made when their number was not written down
        known = {*names, *(entry["key"] for entry in index.skipped)}
        new = sum(name not in known and stamp.changed > indexed for name, stamp in now.items())
    counts = {"new": new, "gone": gone, "changed": changed}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or None
