"""torchrun whose ranks may take their time to save when they are asked to stop, and whose exit status then says so.

PyTorch's own answers a signal by killing what has not ended after 30 seconds, and ends with status 1 whatever the
ranks' status was. Here a signal goes on to the ranks alone, and their wish to be started again (75) is passed on.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import psutil
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from dpar.errors import ignore_broken_pipe, run_command
from dpar.launched import LAUNCHER
from dpar.train.interruption import REQUEUE, heeding


def main(arguments: Sequence[str]) -> int:
    """Exit status of the ranks that `arguments`, torchrun's, ask for: 0, or 75 when they saved and stopped on request.

    Raises:
        ChildFailedError: a rank failed; the others have been stopped.
    """
    ignore_broken_pipe()
    os.environ[LAUNCHER] = str(os.getpid())
    heeding(_pass_on)
    try:
        run.main(["--signals-to-handle=SIGQUIT", *arguments])
    except ChildFailedError as error:
        # ranks agree to stop, and leave when the state is on the disk
        if REQUEUE in {failure.exitcode for failure in error.failures.values()}:
            return REQUEUE
        raise
    return 0


def _pass_on(number: int, _: FrameType | None) -> None:
    ranks = psutil.Process().children()
    if not ranks:  # nothing has begun
        raise SystemExit(REQUEUE)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


if __name__ == "__main__":
    sys.exit(run_command(lambda arguments: sys.exit(main(arguments or ())), sys.argv[1:]))
