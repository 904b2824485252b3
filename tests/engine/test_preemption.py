"""How a run is asked to stop: the clock, SLURM's clock, the launcher's death, and leftovers in the environment."""

from __future__ import annotations

import os
import signal
import time

import pytest

from slm.engine.distributed import prepare_environment
from slm.engine.preemption import NONE, PREEMPT, StopRequest, stop_request, time_left


def test_a_time_limit_is_near_when_two_steps_and_two_checkpoints_no_longer_fit(tmp_path):
    request = StopRequest(tmp_path, watch_file=True, time_left_s=1000.0)  # 60 s are kept free
    assert request.check(step_s=100.0) == NONE
    request.save_s = 300.0
    assert request.check(step_s=100.0) == NONE
    assert request.check(step_s=171.0) == PREEMPT
    assert request.check(step_s=0.0) == PREEMPT, "what was asked stays asked"


def test_a_short_limit_keeps_a_tenth_of_it_free(tmp_path):
    assert StopRequest(tmp_path, watch_file=True, time_left_s=10.0).check(step_s=4.0) == NONE
    assert StopRequest(tmp_path, watch_file=True, time_left_s=10.0).check(step_s=4.6) == PREEMPT


@pytest.fixture
def handlers():
    """What signals did before a test, they do after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_launchers_signal_does_not_cut_the_words_of_a_rank_that_fails(tmp_path, handlers):
    with pytest.raises(ZeroDivisionError), stop_request(tmp_path, watch_file=False):
        raise ZeroDivisionError
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT], "Ctrl-C still ends it"


def test_after_a_run_signals_do_what_they_did_before(tmp_path, handlers):
    with stop_request(tmp_path, watch_file=False) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.check() == PREEMPT
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_slurms_own_limit_counts_where_none_is_given():
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 100)}
    assert 98 < time_left(None, end) < 101
    assert 6 < time_left(time.monotonic() + 7.0, end) <= 7
    assert time_left(None, {}) is None and time_left(None, {"SLURM_JOB_END_TIME": "Unknown"}) is None


def test_ranks_that_their_launcher_left_behind_stop(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSS_RANK", "0")
    request = StopRequest(tmp_path, watch_file=False)
    assert request.check() == NONE
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert request.check() == PREEMPT
    monkeypatch.delenv("CROSS_RANK")
    assert StopRequest(tmp_path, watch_file=False).check() == NONE  # nohup python … & and a shell that ends


@pytest.fixture
def environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_stale_master_port_does_not_concern_a_process_that_is_alone(environment):
    environment.setenv("MASTER_PORT", "29500")
    environment.setenv("MASTER_ADDR", "10.9.8.7")
    environment.setenv("LOCAL_RANK", "3")
    prepare_environment()
    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert found == {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }


def test_a_launchers_place_is_kept(environment):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "n1"), ("MASTER_PORT", "29501")):
        environment.setenv(name, value)
    prepare_environment()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["LOCAL_RANK"]) == ("n1", "29501", "0")


def test_a_run_with_a_time_limit_saves_before_it(train, tmp_path):
    """The limit is met in the middle of the run; it ends before, and the next one continues."""
    begin = time.monotonic()
    outcome = train(tmp_path / "asr", steps=100_000, every=1000, limit="0:40", seed=1)
    assert outcome.status["state"] == "preempted" and outcome.status["exit_code"] == 85, outcome.text
    assert 0 < outcome.status["step"] < 100_000 and time.monotonic() - begin < 120


def test_the_port_on_which_ranks_meet_is_taken(train, tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        outcome = train(tmp_path / "asr", port=taken.getsockname()[1], seed=1)
    assert outcome.code == 4 and "error: the port on which ranks meet is taken" in outcome.text, outcome.text
    assert outcome.text.count("error: the port") == 1 and "Traceback" not in outcome.text
