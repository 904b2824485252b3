"""What a person sees: status table, figures of a running step, plain and live lines."""

from __future__ import annotations

import io
import json
import time

from rich.console import Console

from slm.artifact import write_json, write_status
from slm.pipeline.child import Child
from slm.pipeline.record import Record
from slm.pipeline.run import run_pipeline
from slm.pipeline.status import rows, show_status
from slm.pipeline.view import clock, describe, figures_of, last_record


def test_the_last_whole_record_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_record(path) == {}
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + '\n{"step": 3')
    assert last_record(path) == {"step": 2}


def test_a_record_in_words():
    record = {"step": 40, "steps": 100, "loss": 1.2345, "tokens_per_s": 8123.4, "step_s": 0.5}
    assert describe(record) == "loss 1.234  8,123 tok/s  0:30 left"
    assert clock(3700) == "1:01:40"


def test_status_tells_done_stale_failed_and_to_do_apart(make_plan, screen):
    steps = {"a": {}, "b": {"needs": ["a"]}, "c": {"needs": ["a"]}, "d": {"needs": ["c"]}}
    run_pipeline(make_plan(steps), screen)
    changed = make_plan({**steps, "b": {"needs": ["a"], "text": "new"}, "c": {"needs": ["a"]}})
    (changed.folder / "d" / "MANIFEST.json").unlink()
    record = Record(changed)
    record.end(changed.step("d"), 1.0, "failed")
    found = {row.name: (row.word, row.why) for row in rows(changed)}
    assert found["a"] == ("done", "") and found["b"] == ("stale", "configuration changed: text")
    assert found["c"] == ("done", "") and found["d"] == ("failed", f"see {changed.folder}/logs/d.log")
    show_status(changed, screen)
    assert "2 of 4 steps done" in screen.file.getvalue()


def test_status_of_a_preempted_stage_says_where_it_continues(make_plan):
    plan = make_plan({"a": {"kind": "train"}})
    (plan.folder / "a").mkdir(parents=True)
    write_json(plan.folder / "a" / "status.json", {"state": "preempted", "step": 40, "steps": 400})
    (row,) = rows(plan)
    assert (row.word, row.why) == ("partial", "preempted at step 40 of 400; continues")


def test_status_of_a_stage_that_failed_in_a_job_of_its_own_says_why(make_plan):
    plan = make_plan({"a": {"kind": "train"}})
    (plan.folder / "a").mkdir(parents=True)
    write_status(plan.folder / "a", "failed", exit_code=4, step=7, reason="disk full", rank=3, about={"host": "n2"})
    (row,) = rows(plan)
    assert (row.word, row.why) == ("failed", "disk full (rank 3 on n2, step 7)")


def test_a_terminal_gets_a_bar_and_a_line_for_each_finished_step(make_plan):
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    run_pipeline(make_plan({"a": {"seconds": 0.5}, "b": {"needs": ["a"]}}), screen)
    text = screen.file.getvalue()
    assert "pipeline" in text and "1/2" in text and "✓ [1/2] a" in text and "✓ [2/2] b" in text


def test_a_running_step_shows_its_own_newest_line_and_neither_its_command_nor_the_launchers(make_plan):
    words = ["[2026-11-30 17:17:45,800] [INFO] [runner.py:618:main] cmd = python", "17:18:00 two of three are read"]
    for said, shown in ((words[:0], "starting"), (words[:1], "starting"), (words, "two of three are read")):
        step = make_plan({"a": {"code": f"print({chr(10).join(said)!r})"}}).step("a")
        child = Child(step, step.folder.parent / f"{len(said)}.log", "token")
        try:
            while child.poll() is None:
                time.sleep(0.01)
            assert figures_of(child).words == shown
        finally:
            child.close()
