"""Files that have no record: what they say of themselves, next to what the other files of their results folder say.

Older results say nothing, and are read. Where other files without a record say which job made them, one that does not
has lost its statement or its seal.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dpar.errors import InputError
from dpar.files import is_sealed, seems_sealed
from dpar.statement import DIGITS, Statement, may_state, rule_stated_in, seems_to_state, statement_of
from dpar.tracking.places import CONFIG

_ASIDE = ("tracking", "logs", "state")


@dataclass(frozen=True)
class _Since:
    """The time in seconds since 1970 from which on files carry a mark, and one that does."""

    when: float
    example: Path


class Unrecorded:
    """The files of a results folder that no record tells about.

    Args:
        results: the folder.
        recorded: path in it -> when its last record was made, seconds since 1970; None without one.
        digest_of: path in it -> SHA-256 as the file is now.
    """

    def __init__(self, results: Path, recorded: Callable[[str], float | None], digest_of: Callable[[str], str]):
        self.results, self._recorded, self._digest_of = results, recorded, digest_of
        self._by_rule: dict[str, _Since | None] = {}

    def check(self, file: Path, makers: tuple[str, ...]) -> None:
        """Makes sure of a file without a record by what it says of itself.

        Args:
            makers: names of the jobs of which one must have made it; none: whichever did.

        Raises:
            InputError: it was made by another job, from other files than those that are here, or has lost its seal or
                statement.
        """
        if file.suffix == ".json" and not is_sealed(file):
            self._expect_old(file, self._sealed_since, "has lost its seal")
        if not makers:
            return
        said = check_alone(file, makers)
        if said is None and may_state(file):
            if file.suffix == ".json":  # it is sealed, as a command writes it that is no job
                since = next(filter(None, (self._rule_since(maker.partition("[")[0]) for maker in makers)), None)
            else:
                since = self._stated_since
            self._expect_old(file, since, "has lost its statement of which job made it")
        for path, digits in said.inputs.items() if said else ():
            if (self.results / path).is_file() and self._digest_of(path)[:DIGITS] != digits:
                raise InputError(
                    f"{file} was made by {said.job if said else ''} from another {self.results / path} than is there "
                    f"now (sha256 {digits[:12]}, now {self._digest_of(path)[:12]}): put back the one that belongs to "
                    f"the other, or {cure(file)}"
                )

    def _expect_old(self, file: Path, since: _Since | None, lack: str) -> None:
        """Refuses a file without a mark, unless it is older than all that carry one."""
        if since is not None and file.stat().st_ctime >= since.when:  # which nobody can set
            raise InputError(
                f"{file} {lack}, such as {since.example} has, and no record tells of it: it may have been changed "
                f"or exchanged; put back what was there, or {cure(file)}"
            )

    @cached_property
    def _sealed_since(self) -> _Since | None:
        return self._since(lambda file: file.suffix == ".json" and seems_sealed(file))

    @cached_property
    def _stated_since(self) -> _Since | None:
        return self._since(lambda file: may_state(file) and seems_to_state(file))

    def _rule_since(self, rule: str) -> _Since | None:
        """From when on JSON of a rule says which job made it."""
        if rule not in self._by_rule:
            self._by_rule[rule] = self._since(lambda file: file.suffix == ".json" and rule_stated_in(file) == rule)
        return self._by_rule[rule]

    def _since(self, carries: Callable[[Path], bool]) -> _Since | None:
        """From when on files carry a mark: from ever where one without a record does."""
        found = None
        for file in self._others():
            if carries(file):
                when = self._recorded(file.relative_to(self.results).as_posix())
                if when is None:
                    return _Since(-math.inf, file)
                if found is None or when < found.when:
                    found = _Since(when, file)
        return found

    def _others(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.results):
            top = Path(folder) == self.results
            folders[:] = sorted(n for n in folders if n[0] != "." and not (top and n in _ASIDE))
            yield from (Path(folder, name) for name in sorted(names) if name[0] != "." and name != CONFIG)


def check_alone(file: Path, makers: tuple[str, ...]) -> Statement | None:
    """A file's own word on its origin, if it is what one of these jobs makes; None if it says nothing.

    Raises:
        InputError: it is another job's.
    """
    if (said := statement_of(file)) is not None and said.job not in makers:
        raise InputError(f"{wrong(file, said.job, makers)}; or {cure(file)}")
    return said


def wrong(path: Path, maker: str, makers: tuple[str, ...]) -> str:
    """A file was made by another job than wanted, in words."""
    return f"{path} was made by {maker}, expected is what {listed(makers)} makes: give that"


def listed(makers: tuple[str, ...]) -> str:
    """Jobs of which one is meant, in words."""
    return " or ".join(makers[:4]) + (" ..." if len(makers) > 4 else "")


def cure(file: Path) -> str:
    """The next step about a file that is not as it should be, in words."""
    return f"delete it and run again what makes it; `dpar track accept {file}` says that it is meant as it is"
