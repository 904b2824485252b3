"""Ranks that wait for a slow one."""

from __future__ import annotations

import os
from pathlib import Path

from engine.conftest import ROOT, free_port


def test_a_long_task_of_rank_0_outlasts_the_timeout_of_the_process_group(zygote, tmp_path):
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    script = [str(Path(__file__).with_name("patience_job.py")), str(tmp_path / "end")]
    text, _ = zygote.start(script, 2, env, ROOT, None).communicate()
    patient, impatient = (tmp_path / "end-1").read_text().splitlines()
    assert patient == "together", text
    assert "timed out" in impatient.lower() or "timeout" in impatient.lower(), (
        "the process group waits longer: no proof"
    )
