"""Signals are noted inside the block and handled as before outside it."""

import os
import signal

import pytest

from dpar.train.interruption import Interruption


@pytest.mark.parametrize("number", Interruption.SIGNALS)
def test_a_signal_is_noted_and_the_work_goes_on(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.received is None
        os.kill(os.getpid(), number)
        assert interruption.received == number
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_request_of_a_scheduler_does_not_cut_the_saving_short():
    with Interruption() as interruption:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert interruption.received == signal.SIGUSR1
