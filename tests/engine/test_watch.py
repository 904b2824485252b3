"""A rank that is lost, stopped or stuck ends the job within seconds, named, and every rank leaves its stacks."""

from __future__ import annotations

import json
import re
import sys
import threading
import time

import pytest

from slm.engine.distributed import read_back
from slm.engine.pulse import STEPPING, Pulse, Sign, is_waiting, sign_of
from slm.engine.verdict import LASTING_S, OUTSIDE_S, Verdict, allowed_s, find_hung
from slm.engine.wire import BEAT_S, Hub, Silence, Spoke, patience

FIRST = {"steps": 200, "every": 4, "seed": 1}


def sign(rank, **facts):
    return Sign(rank, f"node{rank}", pid=100 + rank, **{"phase": "forward", "step": 3, "longest_step_s": 1.0, **facts})


# which rank is the odd one


def test_nobody_is_hung_while_one_gets_on():
    assert find_hung([sign(0, still_s=900.0), sign(1, still_s=0.2)], stuck_s=5) is None


def test_the_odd_one_does_not_wait_for_others():
    signs = [sign(rank, still_s=20.0, waits=rank != 2, at="loader.py:7 read" if rank == 2 else "") for rank in range(4)]
    verdict = find_hung(signs, stuck_s=10)
    assert verdict.sign.rank == 2 and verdict.kind == "hung"
    assert str(verdict) == "rank 2 on node2 (process 102) hangs in 'forward' of step 4 for 20 s at loader.py:7 read"


def test_of_several_that_compute_the_one_that_is_behind_is_odd():
    signs = [sign(0, still_s=20.0, count=9), sign(1, still_s=25.0, count=7), sign(2, still_s=20.0, waits=True, count=7)]
    assert find_hung(signs, stuck_s=10).sign.rank == 1


def test_where_all_wait_the_one_with_another_message_is_odd():
    signs = [sign(rank, still_s=20.0, waits=True, at="barrier" if rank == 1 else "all_reduce") for rank in range(3)]
    assert find_hung(signs, stuck_s=10).sign.rank == 1


def test_where_all_wait_in_the_same_place_nobody_is_named():
    verdict = find_hung([sign(rank, still_s=20.0, waits=True, at="loop.py:9 agree") for rank in range(3)], stuck_s=10)
    assert verdict.kind == "stalled"
    assert str(verdict) == (
        "all ranks wait for each other in 'forward' of step 4 for 20 s at loop.py:9 agree: "
        "a message does not arrive, or a GPU hangs"
    )
    alone = find_hung([sign(0, still_s=20.0, waits=True)], stuck_s=10)
    assert alone.kind == "hung"


def test_reading_numbers_back_from_a_gpu_is_waiting():
    class OnGpu:
        def tolist(self):
            return [float(is_waiting(sys._getframe(1)))]  # on a GPU, `tolist` waits without a frame of Python's

    assert read_back(OnGpu()) == [1.0]
    assert not is_waiting(sys._getframe())


def test_how_long_ranks_may_stand_still():
    assert allowed_s([sign(0, longest_step_s=2.0)], None) == 60
    assert allowed_s([sign(0, longest_step_s=2.0), sign(1, longest_step_s=30.0)], None) == 300
    assert allowed_s([sign(0, longest_step_s=0.0)], None) == OUTSIDE_S  # the first step compiles
    assert allowed_s([sign(0), sign(1, phase="evaluating")], None) == OUTSIDE_S
    assert allowed_s([sign(0, phase="resuming"), sign(1, phase="resuming")], None) == LASTING_S  # rank 0 converts
    assert allowed_s([sign(0)], 7.0) == 7 and allowed_s([sign(0, phase="evaluating")], 7.0) == OUTSIDE_S


def test_before_the_first_step_a_rank_may_be_silent_for_longer():
    assert sign(0, phase="building the model").patience == 4 and sign(0, phase="saving").patience == 1


def test_who_took_steps_with_others_is_past_its_start_whatever_it_said_last():
    """Steps of some milliseconds: a rank that stops in its twentieth last said that it was starting."""
    last = sign(1, phase="resuming")
    assert patience(last, sign(0, longest_step_s=0.1)) == 1.0
    assert patience(last, sign(0, longest_step_s=0.0)) == 4.0


def test_a_process_that_was_asleep_itself_blames_nobody():
    silence = Silence()
    silence.add(3600.0)
    assert silence.seconds <= 2 * BEAT_S


def test_a_pulse_is_cheap_and_says_where_the_main_thread_is():
    pulse = Pulse()
    begin = time.perf_counter()
    for _ in range(10_000):
        pulse.mark("forward")
    assert (time.perf_counter() - begin) / 10_000 < 1e-4  # a step has about ten of them
    assert (pulse.phase, pulse.count) == ("forward", 10_000)
    found = []
    watcher = threading.Thread(target=lambda: found.append(sign_of(pulse, 1, "node1", "", look_after_s=0.0)))
    watcher.start()
    watcher.join()  # where the main thread waits meanwhile
    assert "threading.py" in found[0].at and found[0].waits is False and found[0].count == 10_000
    pulse.took_step(1, 50.0)
    pulse.took_step(2, 0.5)
    assert pulse.longest_step_s == 0.5  # the first is no measure


# the connections, over the loopback


def turn_until(line, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        verdict = line.turn()
        if verdict is not None:
            return verdict
    return None


@pytest.fixture
def pair():
    """Rank 0's end and rank 1's, of two ranks."""
    hub = Hub(lambda: sign(0), [1], 5.0, None)
    spoke = Spoke(lambda: sign(1, step=8), 5.0, "127.0.0.1", hub.port, hub.token, sign(0))
    yield hub, spoke
    spoke.close()
    hub.close()


def test_a_closed_connection_is_a_death_and_a_farewell_is_none(pair):
    hub, spoke = pair
    assert turn_until(hub, 0.5) is None
    spoke._wire.socket.close()
    verdict = turn_until(hub, 5)
    assert (verdict.kind, verdict.sign.rank, verdict.sign.step, verdict.lost) == ("died", 1, 8, True)
    assert str(verdict) == "rank 1 on node1 (process 101) died in 'forward' of step 9"


def test_who_says_farewell_may_go(pair):
    hub, spoke = pair
    assert turn_until(hub, 0.3) is None
    spoke.tell({"bye": True})
    spoke._wire.socket.close()
    assert turn_until(hub, 1.0) is None


def test_who_fails_says_why(pair):
    hub, spoke = pair
    spoke.tell({"failed": "no space left", "lost": False})
    verdict = turn_until(hub, 5)
    assert str(verdict) == "rank 1 on node1 (process 101) failed in 'forward' of step 9: no space left"
    assert verdict.lost is False


def test_silence_on_either_side_is_found(pair):
    hub, spoke = pair
    begin = time.monotonic()
    found = {}
    thread = threading.Thread(target=lambda: found.update(hub=turn_until(hub, 30)))
    thread.start()
    thread.join(30)
    assert found["hub"].kind == "silent" and found["hub"].sign.rank == 1
    assert 5 < time.monotonic() - begin < 15
    spoke._wire.socket.setblocking(False)
    spoke.silent_s, spoke._silence.seconds = 1.0, 0.0
    while spoke._wire.receive()[0]:
        pass
    assert turn_until(spoke, 10).sign.rank == 0


def test_a_verdict_travels_whole(pair):
    hub, spoke = pair
    assert turn_until(hub, 0.3) is None
    hub.tell({"verdict": Verdict("hung", sign(1), "for 7 s at x.py:1 f").to_json()})
    assert turn_until(spoke, 5) == Verdict("hung", sign(1), "for 7 s at x.py:1 f")


def test_strangers_are_turned_away(pair):
    hub, _ = pair
    stranger = Spoke(lambda: sign(1), 5.0, "127.0.0.1", hub.port, "not the token", sign(0))
    assert turn_until(hub, 1.0) is None
    assert stranger._wire.receive() == ([], False)  # and rank 1 is watched as before
    stranger.close()


# real ranks


def ended(train, out, fault, **settings):
    begin = time.monotonic()
    outcome = train(out, fault=fault, **{**FIRST, **settings})
    assert outcome.code != 0 and (outcome.out / "status.json").exists(), outcome.text
    return outcome, time.monotonic() - begin


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_by_the_others(train, tmp_path, rank):
    outcome, _ = ended(train, tmp_path / "asr", {"kind": "forward", "step": 6, "ranks": [rank]})
    status = outcome.status
    assert (status["state"], status["exit_code"], status["lost"]) == ("failed", 4, True), outcome.text
    assert status["rank"] == rank and status["phase"] in STEPPING and status["step"] in (5, 6, 7)
    assert re.search(rf"error: rank {rank} on \S+ \(process {status['pid']}\) died in '\w+' of step", outcome.text)
    assert "  | " in outcome.text and f"rank{rank}.log" in outcome.text, "the log's last lines"
    stacks = (outcome.out / "logs" / f"stacks.rank{1 - rank}.txt").read_text()
    assert "loop.py" in stacks or "Traceback" not in outcome.text


def test_a_stopped_rank_is_found_shows_its_stack_and_is_ended(train, tmp_path):
    out = tmp_path / "asr"
    fault = {"kind": "stop", "step": 6, "ranks": [1]}
    outcome, _ = ended(train, out, fault, watch={"silent_s": 8})
    assert re.search(r"error: rank 1 on .* gave no sign of life for \d+ s, last in '\w+'", outcome.text)
    assert outcome.status["rank"] == 1 and outcome.status["lost"]
    for rank in range(2):
        assert "loop.py" in (out / "logs" / f"stacks.rank{rank}.txt").read_text(), rank


def test_a_hung_rank_is_found_by_its_pulse_and_named(train, tmp_path):
    out = tmp_path / "asr"
    outcome, _ = ended(train, out, {"kind": "hang", "step": 6, "ranks": [1]}, watch={"stuck_s": 4})
    assert re.search(r"error: rank 1 on .* hangs in 'forward' of step 7 for \d+ s at \S*faults.py:\d+ ", outcome.text)
    stacks = [(out / "logs" / f"stacks.rank{rank}.txt").read_text() for rank in range(2)]
    here = 'faults.py", line'  # of a stack; the verdict above it names the file too
    assert here in stacks[1] and here not in stacks[0]
    assert re.search(r"torch/distributed|deepspeed/comm|in wait$", stacks[0], re.MULTILINE), stacks[0]


def test_a_rank_with_an_error_of_its_own_is_named_by_all(train, tmp_path):
    outcome, _ = ended(train, tmp_path / "asr", {"kind": "raise", "step": 6, "ranks": [1]})
    assert "a fault of this rank alone" in json.dumps(outcome.status) and outcome.status["rank"] == 1
    log = (outcome.out / "logs" / "rank1.log").read_text()
    assert "Traceback" in log and "ZeroDivisionError" in log


def test_a_run_that_ends_well_leaves_no_stacks(train, tmp_path):
    outcome = train(tmp_path / "asr", **{**FIRST, "steps": 4})
    assert outcome.code == 0, outcome.text
    assert sorted(path.name for path in (outcome.out / "logs").iterdir()) == ["rank0.log", "rank1.log"]
