"""Plans of small real processes: each step writes its artifact with the manifest its job asks for."""

from __future__ import annotations

import io
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from slm.config.base import Job
from slm.config.pipeline import PipelineConfig
from slm.pipeline.graph import Plan, Step

MAKE = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from slm.artifact import read_manifest, write_manifest
time.sleep({seconds})
out = pathlib.Path({out!r})
out.mkdir(parents=True, exist_ok=True)
(out / "result.txt").write_text({text!r})
with open({trace!r}, "a") as file:
    file.write({name!r} + "\\n")
{extra}
inputs = {{name: read_manifest(folder).fingerprint for name, folder in {inputs!r}.items()}}
write_manifest(out, "thing", config={config!r}, inputs=inputs, files=None)
"""


class Thing(Job):
    kind = "thing"
    ignored = ("reads",)

    text: str = "x"
    reads: dict[str, str] = {}

    def inputs(self):
        return dict(self.reads)


@pytest.fixture
def trace(tmp_path):
    """Names of the steps in the order in which their processes did their work."""
    path = tmp_path / "trace.txt"
    path.touch()
    return path


@pytest.fixture
def make_plan(tmp_path, trace):
    """`make_plan({"a": {}, "b": {"needs": ["a"], "extra": "code"}}, slots=2)`."""

    def make(steps, slots=2):
        run = tmp_path / "run"
        made = []
        for name, spec in steps.items():
            needs = tuple(spec.get("needs", ()))
            reads = {need: str(run / need) for need in needs}
            job = Thing(out=str(run / name), text=spec.get("text", name), reads=reads)
            code = spec.get("code") or MAKE.format(
                root=str(Path(__file__).parents[2]),
                seconds=spec.get("seconds", 0),
                out=job.out,
                text=spec.get("bytes", job.text),
                trace=str(trace),
                name=name,
                extra=textwrap.dedent(spec.get("extra", "")),
                inputs=reads,
                config=job.identity(),
            )
            argv = (sys.executable, "-c", code)
            made.append(
                Step(name, spec.get("kind", "discount"), run / name, needs, job, argv, slots=spec.get("slots", 1))
            )
        config = PipelineConfig(name="run", runs=str(tmp_path), steps={})
        return Plan(config, run, tuple(made), slots)

    return make


@pytest.fixture
def screen():
    """A console that is no terminal; `screen.file.getvalue()` is what was printed."""
    return Console(file=io.StringIO(), width=200)
