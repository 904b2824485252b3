"""Stand-ins for ssh, sbatch and their like: they write down what they were called with, and do as told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import hosts as two

ROOT = Path(__file__).parents[2]

RECORD = """#!{python}
import json, os, subprocess, sys
with open({log!r}, "a") as file:
    file.write(json.dumps({{"name": {name!r}, "argv": sys.argv[1:], "environment": sorted(os.environ)}}) + "\\n")
{body}
"""


class StandIns:
    """Programs that stand before the real ones on the PATH."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "calls.jsonl"
        self.log.touch()
        (folder / "bin").mkdir()

    def add(self, name: str, body: str = "") -> None:
        path = self.folder / "bin" / name
        path.write_text(RECORD.format(python=sys.executable, log=str(self.log), name=name, body=body))
        path.chmod(0o755)

    def calls(self, name: str | None = None) -> list[list[str]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [call["argv"] for call in found if name in (None, call["name"])]


@pytest.fixture
def stand_ins(tmp_path_factory, monkeypatch):
    """`stand_ins.add("ssh", "sys.exit(255)")`, then `stand_ins.calls("ssh")`."""
    made = StandIns(tmp_path_factory.mktemp("stand-ins"))
    monkeypatch.setenv("PATH", f"{made.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts on this machine, each a network namespace with an sshd of its own."""
    missing = two.what_is_missing()
    if missing:
        pytest.skip(missing)
    started = two.start(tmp_path_factory.mktemp("hosts"))
    yield started
    two.stop(started)


@pytest.fixture(scope="session")
def pico_run(tmp_path_factory):
    """The run folder of the whole pico pipeline on this one machine, undisturbed."""
    runs = tmp_path_factory.mktemp("one-machine")
    argv = [sys.executable, "launcher/pipeline.py", "ds_configs/pipelines/pico.yaml", f"runs={runs}"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return runs / "pico"


@pytest.fixture(scope="session")
def prepared(pico_run):
    """`prepared(runs)` is a run folder in which data and the random base are made, and nothing else."""

    def make(runs: Path) -> Path:
        run = runs / "pico"
        run.mkdir(parents=True)
        for step in ("data", "random"):
            (run / step).symlink_to(pico_run / step)
        return run

    return make
