"""The graph of a pipeline: frozen steps with their commands, and which of them are done.

Nothing here runs anything or imports torch. A step is done when the artifact in its folder was made
from the same configuration and the same inputs (their fingerprints); anything else says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from slm.artifact import digest, find_manifest, is_current
from slm.config.base import Job, input_fingerprints
from slm.config.pipeline import PipelineConfig
from slm.errors import ConfigError, SlmError


@dataclass(frozen=True)
class Step:
    """One command and the artifact it makes.

    Attributes:
        name, kind: as in the YAML.
        folder: of the artifact.
        needs: steps whose artifacts it reads.
        job: the typed configuration; its identity decides whether the artifact is current.
        argv: the command, see `slm.pipeline.commands`.
        environment: variables the command gets besides those of the pipeline.
        slots: cores it takes; side by side steps share the pipeline's slots.
        shares: tasks that build it side by side under SLURM.
    """

    name: str
    kind: str
    folder: Path
    needs: tuple[str, ...]
    job: Job
    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    slots: int = 1
    shares: int = 1

    @property
    def identity(self) -> str:
        """Changes with whatever would make another artifact of it; what it needs has to be done.

        Raises:
            DataError: an input is missing or unfinished.
        """
        own = {"kind": self.job.kind, "format": self.job.format, "config": self.job.identity()}
        return digest({**own, "inputs": input_fingerprints(self.job)})


@dataclass(frozen=True)
class Plan:
    """A pipeline ready to run.

    Attributes:
        config: what was read.
        folder: the run folder.
        steps: in an order in which they can be made.
        slots: cores to share.
        source: the YAML and the overrides it was read with.
    """

    config: PipelineConfig
    folder: Path
    steps: tuple[Step, ...]
    slots: int
    source: tuple[str, ...] = ()

    def step(self, name: str) -> Step:
        """The step of that name.

        Raises:
            ConfigError: lists the names there are.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise ConfigError(f"no step '{name}'", mend=f"steps: {', '.join(step.name for step in self.steps)}")

    def below(self, name: str) -> set[str]:
        """The step and everything that is made from it."""
        found = {self.step(name).name}
        for step in self.steps:
            if found & set(step.needs):
                found.add(step.name)
        return found


@dataclass(frozen=True)
class State:
    """How a step stands: `done`, `stale` (made from something else), `partial`, `missing` or `waiting`; and why."""

    word: str
    why: str = ""


def states(plan: Plan) -> dict[str, State]:
    """How every step stands, from the artifacts alone."""
    found: dict[str, State] = {}
    for step in plan.steps:
        found[step.name] = state_of(step, {need for need in step.needs if found[need].word != "done"})
    return found


def state_of(step: Step, unmade: Iterable[str] = ()) -> State:
    """How one step stands, given which of its needs are not done."""
    waits_for = sorted(unmade, key=step.needs.index)
    try:
        made = find_manifest(step.folder) is not None
        if waits_for:
            names = ", ".join(waits_for[:3]) + (f" and {len(waits_for) - 3} more" if len(waits_for) > 3 else "")
            return State("stale", f"{names} will be made again") if made else State("waiting", f"needs {names}")
        current, why = is_current(
            step.folder, step.job.kind, step.job.identity(), input_fingerprints(step.job), format=step.job.format
        )
    except SlmError as error:
        return State("stale", f"{error.what} ({error.where})")
    if current:
        return State("done")
    if made:
        return State("stale", why)
    begun = step.folder.is_dir() and any(step.folder.iterdir())
    return State("partial", "begun, not finished") if begun else State("missing", why)
