"""Stand-ins for ssh, sbatch and their like: they write down what they were called with, and do as told."""

from __future__ import annotations

import json
import os
import sys

import pytest
from cluster import hosts as two

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
