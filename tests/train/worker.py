"""A small training as torchrun starts it: `python -m tests.train.worker FOLDER UNTIL [raise|kill|linger|...]`.

What the last word says happens on rank 1 in its fifth step, or on rank 0 whenever it saves.
"""

import os
import signal
import sys
import time
from pathlib import Path

from dpar.train import loop, watch
from tests.train.tiny import train

STEP, LINGER_S = 5, 4
PATIENCE_S = {"hang": 3, "freeze": 3, "hang until asked": 300}


def main(folder: str, until: str, what: str = "") -> None:
    """Trains on this rank."""
    rank, calls, original, save = os.environ["RANK"], [], loop.summed_loss, loop.save_checkpoint

    def failing(logits, targets):
        calls.append(1)
        if len(calls) == STEP and what == "raise":
            raise RuntimeError("rank 1 fails on purpose")
        if len(calls) == STEP and what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(calls) == STEP and what == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if len(calls) == STEP and what.startswith("hang"):
            print("rank 1 hangs", file=sys.stderr, flush=True)
            time.sleep(600)
        return original(logits, targets)

    def lingering(*arguments):
        time.sleep(LINGER_S)
        save(*arguments)

    watch.PATIENCE_S, watch.ASKED_S = PATIENCE_S.get(what, 300), 2
    if rank == "1":
        loop.summed_loss = failing
    if what == "linger":
        loop.save_checkpoint = lingering
    every = 10_000 if what == "linger" else 2
    train(Path(folder), "dpar", int(until), log_every=2, validate_every=10_000, checkpoint_every=every)


if __name__ == "__main__":
    main(*sys.argv[1:])
