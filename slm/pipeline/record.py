"""`pipeline.json` in the run folder: commands, times and machine, for the report and for `--status`."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from slm.artifact import read_json, write_json
from slm.pipeline import commands
from slm.pipeline.graph import Plan, Step
from slm.pipeline.planner import ROOT

FILE = "pipeline.json"


class Record:
    """The steps of a run with what was spent on them; every change is written at once, atomically.

    Seconds add up over the attempts at one artifact and start anew when its configuration changes.
    """

    def __init__(self, plan: Plan) -> None:
        self.path = plan.folder / FILE
        old = read_record(plan.folder)
        known = {entry["name"]: entry for entry in old.get("steps", [])}
        self.steps = {step.name: _entry(step, known.get(step.name, {})) for step in plan.steps}
        self.jobs: dict[str, str] = dict(old.get("slurm", {}))
        self.head = {
            "name": plan.config.name,
            "title": plan.config.title,
            "source": list(plan.source),
            "machine": machine(),
            "revision": revision(),
            "report": next((step.job.model_dump(mode="json") for step in plan.steps if step.kind == "report"), None),
        }

    def begun_identity(self, name: str) -> str:
        """Identity (configuration and inputs) with which the step was last begun; empty when never."""
        return str(self.steps[name]["begun"])

    def begin(self, step: Step) -> None:
        """A step's command is about to start."""
        entry = self.steps[step.name]
        if entry["begun"] != step.identity:
            entry.update(seconds=0.0, attempts=0)
        entry.update(begun=step.identity, attempts=entry["attempts"] + 1, state="running")
        self.write()

    def end(self, step: Step, seconds: float, state: str) -> None:
        """A step's command ended."""
        entry = self.steps[step.name]
        entry.update(
            seconds=round(entry["seconds"] + seconds, 1), state=state, ended=time.strftime("%Y-%m-%d %H:%M:%S")
        )
        self.write()

    def forget(self, step: Step) -> None:
        """The step will be made from nothing."""
        self.steps[step.name].update(begun="", seconds=0.0, attempts=0, state="")
        self.write()

    def submitted(self, name: str, job: str) -> None:
        """A step (or the array before it) was handed to SLURM under this number."""
        self.jobs[name] = job
        self.write()

    def write(self) -> None:
        """Write the file."""
        jobs = {"slurm": self.jobs} if self.jobs else {}
        write_json(self.path, {**self.head, **jobs, "steps": list(self.steps.values())})


def read_record(run: str | Path) -> dict[str, Any]:
    """The run's `pipeline.json`; empty when no pipeline made the folder.

    Raises:
        DataError: the file is damaged.
    """
    path = Path(run) / FILE
    return dict(read_json(path)) if path.is_file() else {}


def _entry(step: Step, old: dict[str, Any]) -> dict[str, Any]:
    kept = {"begun": "", "seconds": 0.0, "attempts": 0, "state": "", "ended": "", **old}
    fixed = {
        "name": step.name,
        "kind": step.kind,
        "folder": str(step.folder),
        "needs": list(step.needs),
        "command": commands.shown(step.argv, step.environment),
    }
    return {**kept, **fixed}


def machine() -> dict[str, Any]:
    """The machine in a few words: no names of hosts or people."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(gib, 1),
    }


def revision() -> str:
    """The checkout's commit, with `+` when files differ from it; empty outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else ""
