"""Progress of a training: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm


class Progress:
    """Shows the progress of a training on standard error, on the main rank only.

    Args:
        done: steps already taken.
        until: steps at the end.
        silent: show nothing.
    """

    def __init__(self, done: int, until: int, *, silent: bool = False):
        self.until = until
        self._silent = silent
        self._began = done
        self._start = time.monotonic()
        terminal = sys.stderr.isatty() and not silent
        self._bar = tqdm(total=until, initial=done, unit="step", dynamic_ncols=True) if terminal else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """The state after `step`: next to the bar, or as a line with the time that is left."""
        text = "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            pace = (time.monotonic() - self._start) / max(step - self._began, 1)
            self.say(f"step {step}/{self.until}  {text}  {duration(pace * (self.until - step))} left")

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._silent:
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`seconds` as text: `40 s`, `3 min`, `2 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
