"""The launch benchmark's own parts: what it reads of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def launch(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "launch", raising=False)
    return __import__("launch")


def test_a_line_that_is_being_written_is_no_record_yet(launch, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "step_s": 0.5}\n{"step": 2, "st')
    assert [record["step"] for record in launch._records(tmp_path)] == [1]
    assert launch._records(tmp_path / "nowhere") == []


def test_the_rank_of_this_stage_is_killed_when_it_is_far_enough_and_no_other(launch, tmp_path):
    code = "import sys, time; time.sleep(60)"
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, f"--local_rank={rank}", f"out={tmp_path / name}"])
        for rank, name in ((0, "llm"), (1, "llm"), (1, "asr"))
    ]
    try:
        (tmp_path / "llm").mkdir()
        (tmp_path / "llm" / "metrics.jsonl").write_text('{"step": 7}\n')
        launch._kill_a_rank(tmp_path / "llm", after=7, process=ranks[0])
        assert ranks[1].wait(10) == -9 and ranks[0].poll() is None and ranks[2].poll() is None
        ranks[0].kill()
        ranks[0].wait()
        with pytest.raises(RuntimeError, match="ended before a rank was killed"):
            launch._kill_a_rank(tmp_path / "llm", after=8, process=ranks[0])
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
