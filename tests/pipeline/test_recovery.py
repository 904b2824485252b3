"""Restarts of train steps, time limits, hosts that are gone, and work in the background: with small real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from slm.cluster.hostfile import Host
from slm.cluster.processes import end_on_hosts
from slm.config.duration import parse_duration
from slm.errors import ConfigError, MachineError, PreemptedError, SlmError
from slm.pipeline.lock import holder, is_held
from slm.pipeline.record import read_record
from slm.pipeline.recovery import OnHosts, Recovery
from slm.pipeline.run import run_pipeline

ROOT = Path(__file__).parents[2]
ATTEMPT = """
import json, os, pathlib, sys, time
sys.path.insert(0, {root!r})
from slm.artifact import write_manifest, write_status
out = pathlib.Path({out!r}); out.mkdir(parents=True, exist_ok=True)
tries = out / "tries"; number = int(tries.read_text()) if tries.exists() else 0
tries.write_text(str(number + 1))
reached = {reached!r}[number]
with open(out / "metrics.jsonl", "a") as file:
    for step in range(1, reached + 1):
        file.write(json.dumps({{"step": step, "steps": 9}}) + "\\n")
if reached < 9:
    {end}
write_manifest(out, "thing", config={config!r}, inputs={{}}, files={{}})
"""
LOST = (
    'write_status(out, "failed", exit_code=4, step=reached, reason="rank 1 on n2 died", rank=1, '
    'about={"lost": True}); sys.exit(1)'
)


@pytest.fixture
def training(make_plan, tmp_path):
    """`training([3, 9], end=…)`: a train step whose attempts reach so many of 9 steps before they end."""

    def make(reached, end=LOST):
        out = str(tmp_path / "run" / "a")
        config = {"text": "a"}
        code = ATTEMPT.format(root=str(ROOT), out=out, reached=reached, end=end, config=config)
        return make_plan({"a": {"kind": "train", "code": code}})

    return make


def tries(plan):
    return int((plan.folder / "a" / "tries").read_text())


def test_a_lost_rank_starts_the_step_again(training, screen):
    plan = training([3, 6, 9])
    assert run_pipeline(plan, screen).made == ("a",)
    assert tries(plan) == 3
    shown = screen.file.getvalue()
    assert "a: starts again from its newest checkpoint (restart 2 of 3)" in shown and "rank 1 on n2 died" in shown
    (entry,) = read_record(plan.folder)["steps"]
    assert entry["attempts"] == 3 and entry["state"] == "done"


def test_restarts_are_bounded(training, screen):
    plan = training([1, 2, 3, 4, 5])
    with pytest.raises(SlmError, match="started again 2 times already") as caught:
        run_pipeline(plan, screen, recovery=Recovery(2))
    assert tries(plan) == 3 and caught.value.exit_code == 4 and "rank 1 on n2 died" in caught.value.what
    with pytest.raises(SlmError, match="--max-restarts 0"):
        run_pipeline(training([5] * 9), screen, recovery=Recovery(0))


@pytest.mark.parametrize(("reached", "made"), [([0, 9], 1), ([3, 3, 9], 2), ([3, 2, 9], 2)])
def test_there_is_no_restart_without_progress(training, screen, reached, made):
    plan = training(reached)
    with pytest.raises(SlmError, match="not started again: this attempt did not get beyond step"):
        run_pipeline(plan, screen)
    assert tries(plan) == made


def test_a_process_that_died_without_a_word_is_started_again(training, screen):
    plan = training([3, 9], end="os.kill(os.getpid(), 9)")
    assert run_pipeline(plan, screen).made == ("a",) and tries(plan) == 2


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_what_is_explained_is_not_tried_again(training, screen, code):
    end = f'write_status(out, "failed", exit_code={code}, step=3, reason="so it is"); sys.exit(1)'
    plan = training([3, 9], end=end)
    with pytest.raises(SlmError, match="so it is") as caught:
        run_pipeline(plan, screen)
    assert tries(plan) == 1 and caught.value.exit_code == code


def test_a_step_that_failed_and_does_not_end_is_ended(training, screen, monkeypatch):
    """As a launcher does that waits for a stopped rank."""
    monkeypatch.setattr("slm.pipeline.child.LINGER_S", 0.5)
    plan = training([3, 9], end=LOST.replace("sys.exit(1)", "time.sleep(600)"))
    begin = time.monotonic()
    assert run_pipeline(plan, screen).made == ("a",)
    assert time.monotonic() - begin < 60


def test_a_time_limit_stops_before_it_is_met(make_plan, tmp_path, screen):
    stop = tmp_path / "run" / "a" / "STOP"
    code = f"import pathlib, time\nwhile not pathlib.Path({str(stop)!r}).exists(): time.sleep(0.05)"
    begin = time.monotonic()
    with pytest.raises(PreemptedError) as caught:
        run_pipeline(make_plan({"a": {"kind": "train", "code": code}}), screen, time_limit_s=5.0)
    assert caught.value.exit_code == 85 and time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("45:00", 2700), ("1:30:00", 5400), ("2-12", 216000), ("2-12:30:05", 217805), (" 1 ", 60)],
)
def test_lengths_of_time_are_slurms(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0:00", "1h", "-5", "1:2:3", "1:00:00:00", "१"])
def test_what_is_no_length_of_time(text):
    with pytest.raises(ConfigError):
        parse_duration(text)


# hosts


OWN = ["/there/.env", "out=runs/a"]
SSH = ["sh", "-c", "shift 2; exec python3 -", "ssh"]
"""Stands in for ssh: the program that would run on the host runs here."""


def test_only_the_steps_own_ranks_and_launchers_are_ended(tmp_path):
    word = f"out={tmp_path}/asr"
    sleep = "import time; time.sleep(120)"
    run = str(tmp_path / ".env")
    mine = [["-c", sleep, "--local_rank=0", run, word], ["-c", sleep, "deepspeed.launcher.launch", run, word]]
    others = [
        ["-c", sleep, "--local_rank=0", run, word + "2"],
        ["-c", sleep, run, word],
        ["-c", sleep, f"x {word}", run, "--local_rank=1"],
        ["-c", sleep, "--local_rank=0", "another/.env", word],
    ]
    started = [subprocess.Popen([sys.executable, *argv]) for argv in (*mine, *others)]
    started[0].send_signal(signal.SIGSTOP)
    try:
        assert end_on_hosts(["n1"], [run, word], ssh=SSH) == {}
        assert [process.wait(10) != 0 for process in started[:2]] == [True, True]
        assert [process.poll() for process in started[2:]] == [None] * 4
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_host_that_does_not_answer_is_named():
    refuses = ["sh", "-c", "echo no route to host >&2; exit 255", "ssh"]
    assert end_on_hosts(["n1", "n2"], ["out=x"], ssh=refuses) == dict.fromkeys(["n1", "n2"], "no route to host")
    assert end_on_hosts(["n1"], ["out=x"], ssh=["sleep", "60"][:1], patience_s=5) != {}


@pytest.fixture
def on_hosts(make_plan, monkeypatch):
    """What is done about a step on two hosts, of which those in `gone` do not answer."""

    def make(gone, least):
        plan = make_plan({"a": {"kind": "train", "code": ""}})
        step = plan.step("a").__class__(
            **{**vars(plan.step("a")), "argv": ("deepspeed", "train.py", "--env-file", OWN[0], "'out=runs/a'")}
        )
        monkeypatch.setattr(
            "slm.pipeline.recovery.end_on_hosts",
            lambda hosts, words: {host: "no route" for host in hosts if host in gone and words == OWN},
        )
        plan.folder.mkdir(parents=True, exist_ok=True)
        recovery = OnHosts([Host("n1", 2), Host("n2", 2)], lambda path: plan, most=3, least=least)
        recovery.clear(step)
        return recovery, step, plan

    return make


def test_a_step_goes_on_with_the_hosts_that_are_left_where_that_is_allowed(on_hosts):
    recovery, step, plan = on_hosts({"n2"}, least=1)
    recovery.again(step)
    assert (plan.folder / "hosts").read_text() == "n1 slots=2\n"
    assert recovery.start(step).argv == plan.step("a").argv and [host.name for host in recovery.hosts] == ["n1"]


@pytest.mark.parametrize(("gone", "least"), [({"n2"}, 2), ({"n1", "n2"}, 1)])
def test_with_too_few_hosts_it_does_not(on_hosts, gone, least):
    recovery, step, _ = on_hosts(gone, least)
    with pytest.raises(MachineError, match=f"{2 - len(gone)} of 2 hosts answer .n") as caught:
        recovery.again(step)
    assert "no route" in caught.value.what and "--min-hosts" in caught.value.mend


def test_with_all_hosts_the_same_command_is_started_again(on_hosts):
    recovery, step, _ = on_hosts(set(), least=2)
    recovery.again(step)
    assert recovery.start(step).argv == step.argv


# in the background


def detached(tmp_path, *argv):
    command = [sys.executable, "-m", "slm", "pipeline", "ds_configs/pipelines/pico.yaml", f"runs={tmp_path}", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_detached_pipeline_works_on_alone_and_is_stopped_by_its_number(tmp_path):
    done = detached(tmp_path, "--detach", "--only", "data")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "pico"
    pid = int(done.stdout.split()[1])
    assert is_held(run) and holder(run / ".lock")["pid"] == pid and f"kill {pid}" in done.stdout
    worker = psutil.Process(pid)
    assert os.getsid(pid) == pid
    worker.suspend()  # fast machines would be done before the second one starts
    try:
        second = detached(tmp_path, "--detach", "--only", "data")
        assert second.returncode == 4 and f"process {pid} on" in second.stderr
        worker.terminate()
    finally:
        worker.resume()
    worker.wait(60)
    assert not is_held(run) and "nothing is lost" in (run / "logs" / "pipeline.log").read_text()


def test_a_detached_pipeline_that_cannot_start_says_why(tmp_path):
    done = detached(tmp_path, "--detach", "--only", "llm")
    assert done.returncode == 2 and re.search(r"step 'llm' needs .*data.*, not done yet", done.stderr), done.stderr
    assert done.stdout == ""
