"""The callbacks: what a resumed run keeps, what a screen shows, and that a broken tracker stops nothing."""

from __future__ import annotations

import io
import json
import logging
import math

import pytest
from rich.console import Console

from slm.callbacks.callback import Callback, Callbacks
from slm.callbacks.metrics import MetricsFile
from slm.callbacks.progress import ProgressBar, describe
from slm.callbacks.wandb import WandbTracker


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(callback, folder, first, last, steps=20):
    callback.on_start({"out": str(folder), "name": "asr", "step": first, "steps": steps, "config": {}})
    for step in range(first + 1, last + 1):
        callback.on_step({"step": step, "loss": 1.0 / step, "tokens_per_s": 1000.0, "lr": 1e-3})


def test_metrics_of_a_resumed_run_continue_at_the_resumed_step(tmp_path):
    run(MetricsFile(), tmp_path, 0, 8)
    path = tmp_path / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 9, "lo')
    again = MetricsFile()
    run(again, tmp_path, 5, 7)
    again.on_end({})
    assert [record["step"] for record in records(path)] == [1, 2, 3, 4, 5, 6, 7]


def test_metrics_lines_are_on_disk_before_the_run_ends(tmp_path):
    run(MetricsFile(), tmp_path, 0, 3)
    assert len(records(tmp_path / "metrics.jsonl")) == 3


def test_non_finite_numbers_stay_readable_json(tmp_path):
    metrics = MetricsFile()
    metrics.on_start({"out": str(tmp_path), "step": 0, "steps": 1})
    metrics.on_step({"step": 1, "loss": math.nan})
    metrics.on_error(RuntimeError("diverged"))
    assert records(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": "nan"}]


def test_plain_progress_says_loss_speed_and_time_left(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    bar = ProgressBar(console=Console(file=io.StringIO(), force_terminal=False))
    run(bar, tmp_path, 0, 20)
    lines = [record.message for record in caplog.records if "step " in record.message]
    assert len(lines) == 10
    assert lines[-1].startswith("step 20/20") and "loss 0.050" in lines[-1] and "1,000 tok/s" in lines[-1]


def test_terminal_progress_draws_a_bar(tmp_path):
    screen = io.StringIO()
    bar = ProgressBar(console=Console(file=screen, force_terminal=True, width=120))
    run(bar, tmp_path, 0, 20)
    bar.on_end({})
    assert "asr" in screen.getvalue() and "20/20" in screen.getvalue()


def test_describe_leaves_out_what_is_not_there():
    assert describe({"step": 1}) == ""


def test_several_callbacks_hear_everything_in_order():
    heard = []

    class Listener(Callback):
        def __init__(self, name):
            self.name = name

        def on_step(self, record):
            heard.append((self.name, record["step"]))

    both = Callbacks([Listener("a"), Listener("b")])
    both.on_start({"step": 0, "steps": 1})
    both.on_step({"step": 1})
    both.on_save({})
    both.on_error(RuntimeError())
    both.on_end({})
    assert heard == [("a", 1), ("b", 1)]


def test_a_broken_tracker_does_not_stop_training(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    tracker = WandbTracker("slm")

    class Broken:
        def log(self, record, step):
            raise OSError("no network")

        def finish(self, exit_code):
            raise AssertionError("a stopped run is not finished again")

    monkeypatch.setattr(tracker._wandb, "init", lambda **kwargs: Broken())
    run(tracker, tmp_path, 0, 2)
    tracker.on_end({})
    assert sum("training goes on" in record.message for record in caplog.records) == 1
