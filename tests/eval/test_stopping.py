"""SIGTERM as an exception that is not lost."""

import os
import signal
import sys
import time

import pytest

from slm.eval.stopping import Stopped, held, stopping


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


def test_work_that_ended_before_the_second_signal_is_done(as_it_was, monkeypatch):
    monkeypatch.setattr("slm.eval.stopping.AGAIN_S", 0.5)
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        with stopping():
            one = _ToldAtItsEnd()
            del one
            done = True
        _work(0.7)
        assert done and not came
    finally:
        signal.signal(signal.SIGTERM, before)


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


def test_a_second_signal_does_not_cut_short_what_is_put_in_order(as_it_was):
    in_order = []
    with pytest.raises(Stopped), stopping():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            _work(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            _work(0.1)
            in_order.append(True)
    assert in_order


def test_where_locks_are_shared_the_work_is_asked_not_interrupted(as_it_was):
    steps = []
    with pytest.raises(Stopped), stopping(), held() as look:
        look()
        os.kill(os.getpid(), signal.SIGTERM)
        _work(0.1)
        steps.append("not interrupted")
        look()
        steps.append("not reached")
    assert steps == ["not interrupted"]
    with pytest.raises(Stopped), stopping(), held():
        os.kill(os.getpid(), signal.SIGTERM)
    with stopping(), held() as look:  # of another evaluation
        look()
