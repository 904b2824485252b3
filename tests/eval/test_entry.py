from __future__ import annotations

import subprocess
import sys

from slm.config.evaluation import EvalJob
from slm.config.loader import load_config
from slm.eval.tasks import SCORERS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "slm.eval", *arguments], capture_output=True, text=True, timeout=60)


def test_without_arguments_it_says_what_it_could_do():
    said = run()
    assert said.returncode == 2
    assert "usage:" in said.stderr and "tiny.yaml" in said.stderr


def test_a_wrong_key_is_one_line(tmp_path):
    said = run("ds_configs/eval/tiny.yaml", f"out={tmp_path}", "data=d", "model=m", "tasks.asr.limit=-1", "batchsize=3")
    assert said.returncode == 2 and "Traceback" not in said.stderr
    assert "tasks.asr.limit" in said.stderr and "did you mean 'batch_size'" in said.stderr


def test_a_missing_model_is_a_data_error(tmp_path):
    said = run("ds_configs/eval/tiny.yaml", f"out={tmp_path}", f"data={tmp_path}", "model=nowhere")
    assert said.returncode == 3 and "folder not found" in said.stderr and "Traceback" not in said.stderr


def test_the_shipped_configuration_covers_every_scorer():
    job = load_config(EvalJob, "ds_configs/eval/tiny.yaml", ["out=o", "data=d", "model=m"])
    assert {options.scorer or name for name, options in job.tasks.items()} == set(SCORERS)
