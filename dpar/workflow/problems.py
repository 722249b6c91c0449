"""One thing to mend before a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """The key, what stands there, what may stand there, and what to do.

    Attributes:
        place: the key of its place, where it is another.
        against: the key of the setting that it does not fit.
    """

    key: str
    found: str
    allowed: str
    remedy: str
    place: str | None = None
    against: str | None = None

    def __str__(self) -> str:
        return f"{self.key}: found {self.found}; expected {self.allowed}; {self.remedy}"
