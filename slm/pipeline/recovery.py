"""Starting a train step again after a rank or a host was lost, and clearing away what the lost attempt left."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from slm.artifact import write_atomic
from slm.cluster.hostfile import Host
from slm.cluster.processes import end_on_hosts
from slm.errors import MachineError
from slm.pipeline.graph import Plan, Step

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
HOSTS = "hosts"
"""Name, in the run folder, of the hostfile with those that are left."""


class Recovery:
    """Train steps on this machine: what they leave are this pipeline's children, which it ends itself.

    Args:
        most: restarts of one step at most.
    """

    def __init__(self, most: int = MAX_RESTARTS) -> None:
        self.most = most

    def clear(self, step: Step) -> None:
        """End what an attempt left elsewhere."""

    def start(self, step: Step) -> Step:
        """The step as it is to be started now; nothing of an earlier attempt is left then."""
        return step

    def again(self, step: Step) -> None:
        """See to it that a step whose attempt was cleared away can be started again.

        Raises:
            MachineError: it can't be.
        """


class OnHosts(Recovery):
    """Train steps on the hosts of a file; a step goes on without those that no longer answer, if that is allowed.

    Args:
        hosts: of the hostfile.
        ready: checks hosts and gives the plan for them, from a hostfile of its own.
        least: hosts at least; fewer end the run.
    """

    def __init__(self, hosts: Sequence[Host], ready: Callable[[Path], Plan], *, most: int, least: int) -> None:
        super().__init__(most)
        self.hosts, self.ready, self.least = tuple(hosts), ready, least
        self._left: Plan | None = None
        self._silent: dict[str, str] = {}

    def clear(self, step: Step) -> None:
        """End the step's ranks and launchers on every host; who does not answer is remembered."""
        words = [text for quoted in step.argv for text in shlex.split(quoted)]
        own = [text for before, text in pairwise(["", *words]) if text.startswith("out=") or before == "--env-file"]
        if step.kind == "train" and own:
            self._silent = end_on_hosts([host.name for host in self.hosts], own)
            for host, problem in self._silent.items():
                log.warning("%s: %s", host, problem)

    def start(self, step: Step) -> Step:
        if step.kind != "train":
            return step
        self.clear(step)  # a pipeline that was killed outright leaves its ranks on the hosts
        return replace(step, argv=self._left.step(step.name).argv) if self._left is not None else step

    def again(self, step: Step) -> None:
        left = [host for host in self.hosts if host.name not in self._silent]
        if len(left) < max(1, self.least):
            lost = "; ".join(f"{host}: {problem}" for host, problem in self._silent.items())
            raise MachineError(
                f"{len(left)} of {len(self.hosts)} hosts answer ({lost})",
                mend=f"bring them back and run the same command again, or go on with fewer: --min-hosts {len(left)}",
            )
        if len(left) < len(self.hosts):
            path = step.folder.parent / HOSTS
            write_atomic(path, "".join(f"{host.name} slots={host.slots}\n" for host in left))
            self._left, self.hosts = self.ready(path), tuple(left)
