"""SIGTERM as an exception that is not lost."""

import os
import signal
import sys
import time

import pytest

from slm.eval.stopping import Stopped, stopping


class _ToldAtItsEnd:
    """SIGTERM comes while Python finalises it: what a handler raises there is dropped."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def as_it_was():
    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    yield
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before


def _work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_a_signal_stops_the_work(as_it_was):
    with pytest.raises(Stopped), stopping():
        os.kill(os.getpid(), signal.SIGTERM)
        _work(10)


def test_a_signal_while_an_object_is_finalised_stops_it_too(as_it_was, capfd):
    with pytest.raises(Stopped), stopping():
        one = _ToldAtItsEnd()
        del one
        _work(10)
    assert not capfd.readouterr().err


def test_work_that_ended_before_the_second_signal_is_done(as_it_was):
    with stopping():
        one = _ToldAtItsEnd()
        del one
    time.sleep(0.2)


def test_other_errors_of_finalisers_are_told_as_ever(as_it_was):
    class Broken:
        def __del__(self):
            raise ValueError("broken")

    told = []
    sys.unraisablehook, before = told.append, sys.unraisablehook
    try:
        with stopping():
            one = Broken()
            del one
    finally:
        sys.unraisablehook = before
    assert [each.exc_type for each in told] == [ValueError]
