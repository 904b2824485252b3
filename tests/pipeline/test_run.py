"""Running a plan: order, skipping, staleness, failures, locks, Ctrl-C and kills, with real processes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slm.artifact import write_status
from slm.errors import ConfigError, InterruptedRunError, MachineError, PreemptedError, SlmError
from slm.pipeline.graph import states
from slm.pipeline.lock import TOKEN, RunLock, end_processes, is_held, processes
from slm.pipeline.record import read_record
from slm.pipeline.run import run_pipeline

DIAMOND = {"a": {}, "b": {"needs": ["a"]}, "c": {"needs": ["a"]}, "d": {"needs": ["b", "c"]}}


def words(plan):
    return {name: state.word for name, state in states(plan).items()}


def test_steps_run_after_what_they_need_and_a_second_run_does_nothing(make_plan, trace, screen):
    plan = make_plan(DIAMOND)
    outcome = run_pipeline(plan, screen)
    order = trace.read_text().split()
    assert set(outcome.made) == set(order) == {"a", "b", "c", "d"}
    assert order[0] == "a" and order[-1] == "d"
    assert run_pipeline(plan, screen).made == ()
    assert trace.read_text().split() == order


def test_independent_steps_run_side_by_side_when_slots_allow(make_plan, screen):
    steps = {"a": {"seconds": 0.8}, "b": {"seconds": 0.8}}
    run_pipeline(make_plan(steps, slots=2), screen)
    lines = screen.file.getvalue().splitlines()
    assert ["a" in lines[0], "b" in lines[1]] == [True, True]  # both started before either ended


def test_a_step_that_takes_all_slots_runs_alone(make_plan, screen):
    plan = make_plan({"a": {"seconds": 0.3, "slots": 2}, "b": {"seconds": 0.3}}, slots=2)
    run_pipeline(plan, screen)
    started = [line.split("]")[1].split()[0].strip(":") for line in screen.file.getvalue().splitlines()]
    assert started == ["a", "a", "b", "b"]


def test_a_changed_configuration_remakes_only_what_comes_from_it(make_plan, trace, screen):
    run_pipeline(make_plan(DIAMOND), screen)
    trace.write_text("")
    changed = make_plan({**DIAMOND, "b": {"needs": ["a"], "text": "other"}})
    assert words(changed) == {"a": "done", "b": "stale", "c": "done", "d": "stale"}
    assert states(changed)["b"].why == "configuration changed: text"
    run_pipeline(changed, screen)
    assert trace.read_text().split() == ["b", "d"]


def test_an_input_that_comes_out_the_same_leaves_the_rest_done(make_plan, trace, screen):
    run_pipeline(make_plan(DIAMOND), screen)
    trace.write_text("")
    (make_plan(DIAMOND).folder / "a" / "MANIFEST.json").unlink()
    plan = make_plan(DIAMOND)
    assert words(plan) == {"a": "partial", "b": "stale", "c": "stale", "d": "stale"}
    run_pipeline(plan, screen)
    assert trace.read_text().split() == ["a"]


def test_a_failure_stops_the_run_and_shows_the_end_of_the_log(make_plan, trace, screen):
    fails = "import sys\nprint('noise')\nprint('error: the disk is sad')\nprint('  mend:  cheer it up')\nsys.exit(3)"
    plan = make_plan({"a": {}, "b": {"needs": ["a"], "code": fails}, "c": {"needs": ["b"]}})
    with pytest.raises(SlmError) as caught:
        run_pipeline(plan, screen)
    assert caught.value.exit_code == 3
    assert "step 'b' failed: exit code 3" in caught.value.what
    assert "| error: the disk is sad\n  |   mend:  cheer it up" in caught.value.what
    assert "noise" not in caught.value.what
    assert trace.read_text().split() == ["a"]
    repaired = make_plan({"a": {}, "b": {"needs": ["a"]}, "c": {"needs": ["b"]}})
    assert run_pipeline(repaired, screen).made == ("b", "c")


def test_exit_code_zero_without_an_artifact_is_a_failure(make_plan, screen):
    with pytest.raises(SlmError, match="ended without its artifact"):
        run_pipeline(make_plan({"a": {"code": "pass"}}), screen)


def test_an_artifact_with_a_bad_exit_code_is_done(make_plan, screen):
    """Launchers change exit codes; the artifact decides."""
    assert run_pipeline(
        make_plan({"a": {"extra": "import atexit, os; atexit.register(os._exit, 1)"}}), screen
    ).made == ("a",)


def test_status_json_decides_what_became_of_training(make_plan, tmp_path, screen):
    code = f"""
import json, pathlib
out = pathlib.Path({str(tmp_path / "run" / "a")!r}); out.mkdir(parents=True)
status = {{"state": "failed", "exit_code": 5, "reason": "loss is not finite", "rank": 1, "step": 7}}
(out / "status.json").write_text(json.dumps(status))
"""
    with pytest.raises(SlmError, match=r"loss is not finite \(rank 1, step 7\)") as caught:
        run_pipeline(make_plan({"a": {"kind": "train", "code": code}}), screen)
    assert caught.value.exit_code == 5


def test_an_earlier_attempts_status_says_nothing_of_this_one(make_plan, tmp_path, screen):
    folder = tmp_path / "run" / "a"
    folder.mkdir(parents=True)
    write_status(folder, "preempted", exit_code=85, step=7)
    with pytest.raises(SlmError, match="step 'a' failed: exit code 1") as caught:
        run_pipeline(make_plan({"a": {"kind": "train", "code": "import sys; sys.exit(1)"}}), screen)
    assert caught.value.exit_code == 1


def test_a_preemption_of_this_attempt_is_one_again(make_plan, tmp_path, screen):
    folder = tmp_path / "run" / "a"
    folder.mkdir(parents=True)
    write_status(folder, "preempted", exit_code=85, step=7)
    root = str(Path(__file__).parents[2])
    code = f"""
import sys; sys.path.insert(0, {root!r})
from slm.artifact import write_status
write_status({str(folder)!r}, "preempted", exit_code=85, step=7); sys.exit(1)
"""
    with pytest.raises(PreemptedError, match="saved at step 7"):
        run_pipeline(make_plan({"a": {"kind": "train", "code": code}}), screen)


def test_only_needs_its_inputs_and_makes_nothing_else(make_plan, trace, screen):
    plan = make_plan(DIAMOND)
    with pytest.raises(ConfigError, match="'b' needs a, not done yet"):
        run_pipeline(plan, screen, only="b")
    run_pipeline(plan, screen, only="a")
    run_pipeline(plan, screen, only="b")
    assert trace.read_text().split() == ["a", "b"]
    with pytest.raises(ConfigError, match="no step 'z'"):
        run_pipeline(plan, screen, only="z")


def test_from_makes_the_step_and_what_comes_from_it_again(make_plan, trace, screen):
    plan = make_plan(DIAMOND)
    with pytest.raises(ConfigError, match="'b' needs steps that are not done: a"):
        run_pipeline(plan, screen, start="b")
    run_pipeline(plan, screen)
    trace.write_text("")
    assert run_pipeline(plan, screen, start="b").made == ("b", "d")
    assert trace.read_text().split() == ["b", "d"]


def test_what_was_trained_is_set_aside_and_not_removed_when_it_is_made_anew(make_plan, screen):
    def run(text, **options):
        plan = make_plan({"a": {"kind": "train", "text": text}, "b": {"text": text}})
        run_pipeline(plan, screen, **options)
        return plan.folder

    folder = run("one")
    run("two")
    run("two", start="a")
    kept = {path.name: (path / "result.txt").read_text() for path in (folder / "superseded").iterdir()}
    assert kept == {"a-1": "one", "a-2": "two"}
    assert (folder / "a" / "result.txt").read_text() == "two"
    assert f"it starts anew, the old one is {folder}/superseded/a-1" in screen.file.getvalue()


def test_only_and_from_together_are_refused_and_remove_nothing(make_plan, screen):
    plan = make_plan(DIAMOND)
    run_pipeline(plan, screen)
    with pytest.raises(ConfigError, match="exclude each other"):
        run_pipeline(plan, screen, only="b", start="b")
    assert set(words(plan).values()) == {"done"}


def test_a_step_whose_removal_is_cut_short_is_not_done(make_plan, screen, monkeypatch):
    plan = make_plan({"a": {}})
    run_pipeline(plan, screen)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("slm.artifact.shutil.rmtree", killed)
        run_pipeline(plan, screen, start="a")
    assert (plan.folder / "a" / "result.txt").exists() and words(plan) == {"a": "partial"}


def test_one_pipeline_per_run_folder_and_the_holder_is_named(make_plan, screen):
    plan = make_plan({"a": {}})
    with RunLock(plan.folder):
        assert is_held(plan.folder)
        with pytest.raises(MachineError, match="another pipeline") as caught:
            run_pipeline(plan, screen)
        assert f"process {os.getpid()} on" in caught.value.where
    assert not is_held(plan.folder)
    run_pipeline(plan, screen)


def test_a_stale_lock_is_taken_over_and_leftover_processes_are_ended(make_plan, screen):
    plan = make_plan({"a": {}})
    plan.folder.mkdir()
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, TOKEN: "dead.a"}
    )
    holder = {"pid": 2**22, "host": "here", "since": "yesterday", "token": "dead"}
    (plan.folder / ".lock").write_text(json.dumps(holder))
    run_pipeline(plan, screen)
    assert orphan.wait(5) == -signal.SIGTERM
    assert (plan.folder / ".lock").read_text() == ""


def press(number, when, times=1, gap=0.6):
    """Send this process a signal, once the file `when` is there."""

    def send():
        deadline = time.monotonic() + 60
        while not when.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(gap)

    threading.Thread(target=send).start()


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGINT, InterruptedRunError, 130),
        (signal.SIGTERM, PreemptedError, 85),
        (signal.SIGUSR1, PreemptedError, 85),
    ],
)
def test_asked_to_stop_it_waits_for_the_child_and_the_next_run_continues(make_plan, screen, number, error, code):
    slow = make_plan({"a": {}, "b": {"needs": ["a"], "seconds": 30}})
    press(number, slow.folder / "logs" / "b.log")
    began = time.monotonic()
    with pytest.raises(error) as caught:
        run_pipeline(slow, screen)
    assert caught.value.exit_code == code and time.monotonic() - began < 10
    assert words(slow)["a"] == "done"
    assert run_pipeline(make_plan({"a": {}, "b": {"needs": ["a"]}}), screen).made == ("b",)


def test_a_train_step_is_asked_by_its_stop_file(make_plan, tmp_path, screen):
    """Its ranks must agree on a step, so no signal is sent while they can still save."""
    folder = tmp_path / "run" / "a"
    code = f"""
import pathlib, time
while not pathlib.Path({str(folder / "STOP")!r}).exists(): time.sleep(0.05)
pathlib.Path({str(folder / "saved")!r}).write_text("checkpoint")
"""
    press(signal.SIGINT, tmp_path / "run" / "logs" / "a.log")
    with pytest.raises(InterruptedRunError):
        run_pipeline(make_plan({"a": {"kind": "train", "code": code}}), screen)
    assert (folder / "saved").exists() and not (folder / "STOP").exists()


def test_a_second_ctrl_c_ends_at_once_and_leaves_no_child(make_plan, tmp_path, screen, monkeypatch):
    deaf = tmp_path / "deaf"
    stubborn = "import pathlib, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    stubborn += f"pathlib.Path({str(deaf)!r}).touch(); time.sleep(60)"
    plan = make_plan({"a": {"code": stubborn}})
    tokens = []
    monkeypatch.setattr("slm.pipeline.run.RunLock", lambda run: tokens.append(RunLock(run)) or tokens[-1])
    press(signal.SIGINT, deaf, times=2)
    began = time.monotonic()
    with pytest.raises(InterruptedRunError, match="ended before it could save: a") as caught:
        run_pipeline(plan, screen)
    assert "nothing is lost" not in caught.value.what
    assert time.monotonic() - began < 10
    assert processes(tokens[0].token) == []


def test_killed_outright_the_next_run_continues_and_ends_the_orphan(make_plan, tmp_path, trace, screen):
    """The pipeline in a process of its own is killed by -9 in the middle of a step."""
    script = tmp_path / "go.py"
    root = str(Path(__file__).parents[2])
    script.write_text(f"""
import sys
sys.path.insert(0, {root!r}); sys.path.insert(0, {str(Path(__file__).parent)!r})
import pickle
from rich.console import Console
from slm.pipeline.run import run_pipeline
run_pipeline(pickle.load(open({str(tmp_path / "plan")!r}, "rb")), Console())
""")
    plan = make_plan({"a": {}, "b": {"needs": ["a"], "seconds": 45}})
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (plan.folder / "logs" / "b.log").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "a" in trace.read_text()
        token = json.loads((plan.folder / ".lock").read_text())["token"]
        while len(processes(token)) != 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert len(processes(token)) == 1
        quick = make_plan({"a": {}, "b": {"needs": ["a"]}})
        assert run_pipeline(quick, screen).made == ("b",)
        assert processes(token) == []
    finally:
        end_processes(token)


def test_the_record_keeps_commands_and_time_spent(make_plan, screen):
    plan = make_plan({"a": {"seconds": 0.3}})
    run_pipeline(plan, screen)
    record = read_record(plan.folder)
    (entry,) = record["steps"]
    assert entry["state"] == "done" and entry["seconds"] >= 0.3 and entry["attempts"] == 1
    assert record["machine"]["cores"] >= 1


def test_a_begun_stage_whose_input_was_made_anew_does_not_continue(make_plan, tmp_path, screen):
    begins = "import pathlib, sys; out = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True)"
    begins += "; print('kept' if (out / 'checkpoint').exists() else 'empty'); (out / 'checkpoint').touch(); sys.exit(3)"

    def attempt(text):
        plan = make_plan({"a": {"text": text}, "b": {"needs": ["a"], "kind": "train", "code": begins}})
        step = plan.step("b")
        plan = replace(plan, steps=(plan.step("a"), replace(step, argv=(*step.argv, str(step.folder)))))
        with pytest.raises(SlmError, match="step 'b' failed"):
            run_pipeline(plan, screen)
        return (tmp_path / "run" / "logs" / "b.log").read_text().split()[-1]

    assert [attempt("one"), attempt("one"), attempt("two")] == ["empty", "kept", "empty"]
    assert "b: configuration or inputs changed; it starts anew" in screen.file.getvalue()
