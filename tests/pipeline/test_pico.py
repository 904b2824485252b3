"""The pico pipeline end to end: real speech, shards, DeepSpeed on two ranks, merges, evaluation, report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slm.artifact import read_json, read_manifest, verify

ROOT = Path(__file__).parents[2]


def pipeline(runs, *options):
    argv = [sys.executable, "launcher/pipeline.py", "ds_configs/pipelines/pico.yaml", f"runs={runs}", *options]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1800)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder of one whole pico pipeline."""
    runs = tmp_path_factory.mktemp("pico")
    done = pipeline(runs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "made 19 of 19 steps" in done.stdout
    return runs / "pico"


def test_every_step_is_a_verified_artifact(run):
    steps = read_json(run / "pipeline.json")["steps"]
    assert len(steps) == 19 and {step["state"] for step in steps} == {"done"}
    for step in steps[:-1]:
        verify(ROOT / step["folder"])


def test_stages_leave_adapters_curves_and_a_status(run):
    for name in ("naive-sqa", "replay-sqa"):
        assert read_json(run / name / "status.json")["state"] == "done"
        assert (run / name / "adapter" / "adapter_model.safetensors").is_file()
        assert (run / name / "metrics.jsonl").read_text().count("\n") >= 2
    replayed = read_manifest(run / "replay-sqa", "stage").config["replay"]
    assert [source["ratio"] for source in replayed] == [0.1, 0.1, 0.1]


def test_all_models_were_evaluated_on_all_tasks(run):
    summary = read_json(run / "evaluation" / "summary.json")
    assert len(summary["labels"]) == 14 and len(summary["tasks"]) == 7
    assert all(entry["score"] is not None for row in summary["scores"].values() for entry in row.values())
    assert set(summary["chains"]) == {"naive", "replay"}


def test_the_report_stands_at_the_top_of_the_run(run):
    text = (run / "report.html").read_text()
    for title in ("What was kept", "The forgetting matrix", "Three remedies compared", "Learning, stage by stage"):
        assert f"<h2>{title}</h2>" in text
    assert (run / "report" / "heatmap.png").is_file()


def test_run_again_it_does_nothing_and_says_so(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("MANIFEST.json")}
    done = pipeline(run.parent)
    assert done.returncode == 0 and "nothing to do: all 19 steps" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("MANIFEST.json")} == before


def test_status_of_the_finished_run(run):
    done = subprocess.run(
        [sys.executable, "-m", "slm", "status", str(run)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "19 of 19 steps done" in done.stdout
