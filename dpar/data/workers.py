"""Passes over many images: threads that read ahead, and a progress line now and then."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def mapped(function: Callable[[S], T], items: Iterable[S], *, threads: int, ahead: int) -> Iterator[T]:
    """`function` of each item, in order, computed by threads; at most `ahead` results are kept ready.

    An error is raised when its item's turn comes; whatever has not begun by then, or when the reader stops, is dropped.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def reported(items: Iterable[T], total: int, verb: str, *, size: int = 1, every: float = 10.0) -> Iterator[T]:
    """The same items; progress, speed and remaining time go to standard error.

    Args:
        items: each stands for `size` images, the last perhaps for fewer.
        total: images in all.
        verb: of the message, such as `read`.
        size: images per item.
        every: seconds between lines.
    """
    start = said = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        done, now = min(number * size, total), time.monotonic()
        if now - said >= every or done == total:
            said, pace = now, done / max(now - start, 1e-9)
            left = f", {(total - done) / pace:.0f} s left" if done < total else ""
            print(f"{verb} {done} of {total} images, {pace:.0f} per second{left}", file=sys.stderr, flush=True)
