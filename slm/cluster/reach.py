"""Asking hosts: the probe's text goes to a Python on each, by ssh, by one `srun`, or here; all at once."""

from __future__ import annotations

import inspect
import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from slm.artifact import VERSIONED
from slm.cluster import probe
from slm.cluster.hostfile import Host
from slm.errors import MachineError

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""No password is ever asked for: what would ask fails."""
PATIENCE_S = 40.0
AT_ONCE = 64


@dataclass(frozen=True)
class Report:
    """What became of asking one host.

    Attributes:
        host: as the hostfile or SLURM names it.
        facts: the probe's answer (`slm.cluster.probe.collect`); empty when there is none.
        problem: why there is none.
        clock_s: how far the host's clock is certainly off ours, after the time on the way is taken off; seconds.
    """

    host: str
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    clock_s: float = 0.0


def make_request(folder: str, shared: str, token: str, peers: Sequence[str], port: int, clear: bool) -> dict[str, Any]:
    """What the probe is asked, see `slm.cluster.probe.collect`."""
    return {
        "folder": folder,
        "shared": shared,
        "token": token,
        "packages": list(VERSIONED),
        "peers": list(peers),
        "port": port,
        "clear_locks": clear,
    }


def probe_text(request: Mapping[str, Any]) -> str:
    """A program for `python -`: the request, then the probe."""
    source = inspect.getsource(probe)
    head, future, body = source.partition("from __future__ import annotations\n")
    return f"{head}{future}REQUEST = __import__('json').loads({json.dumps(json.dumps(dict(request)))})\n{body}"


def remote_command(folder: str, python: str) -> str:
    """A command for any login shell that runs the probe: by the environment's Python, or one that is there."""
    folder, python = shlex.quote(folder), shlex.quote(python)
    script = f"cd {folder} 2>/dev/null; if [ -x {python} ]; then exec {python} -; else exec python3 -; fi"
    return f"exec sh -c {shlex.quote(script)}"


def ask_here(request: Mapping[str, Any]) -> Report:
    """This machine's own report."""
    return Report("here", probe.collect(dict(request)))


def ask_by_ssh(
    hosts: Sequence[Host], request: Mapping[str, Any], *, ssh: Sequence[str] = SSH, patience_s: float = PATIENCE_S
) -> list[Report]:
    """Every host's report, asked side by side; in the order of `hosts`."""
    command, text = remote_command(request["folder"], sys.executable), probe_text(request)

    def ask(host: Host) -> Report:
        said = _ask([*ssh, "--", host.name, command], text, patience_s)
        answers = list(said.by_host.values())
        if not answers:
            return Report(host.name, problem=said.why)
        return Report(host.name, answers[0].facts, "" if answers[0].facts else said.why, answers[0].clock_s)

    with ThreadPoolExecutor(min(AT_ONCE, len(hosts))) as pool:
        return list(pool.map(ask, hosts))


def ask_by_srun(srun: Sequence[str], nodes: int, request: Mapping[str, Any], *, patience_s: float) -> list[Report]:
    """Every node's report, by one `srun` that starts a task on each.

    Raises:
        MachineError: SLURM gave no nodes, or none answered.
    """
    command = ["sh", "-c", remote_command(request["folder"], sys.executable)]
    argv = [*srun, f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", *command]
    said = _ask(argv, probe_text(request), patience_s)
    if not said.by_host:
        raise MachineError(f"srun brought no answer: {said.why}", mend="is the partition right, are nodes free?")
    return [
        Report(host, answer.facts, "" if answer.facts else said.why, answer.clock_s)
        for host, answer in sorted(said.by_host.items())
    ]


@dataclass
class _Answer:
    facts: dict[str, Any]
    clock_s: float


@dataclass
class _Said:
    by_host: dict[str, _Answer]
    why: str


def _ask(argv: Sequence[str], text: str, patience_s: float) -> _Said:
    """Run a command that feeds the probe to one or more hosts, and sort what comes back."""
    sent, found = time.time(), dict[str, _Answer]()
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        except OSError as error:
            return _Said({}, f"{argv[0]}: {error.strerror}")
        timer = threading.Timer(patience_s, process.kill)
        timer.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            with process.stdin as stdin:
                stdin.write(text.encode())
        except BrokenPipeError:
            pass  # it ended before it read: its exit says why
        with process.stdout as lines:
            for line in lines:
                _take(line.decode(errors="replace"), sent, found)
        code = process.wait()
        late = not timer.is_alive()
        timer.cancel()
        errors.seek(0)
        last = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    why = f"no answer in {patience_s:.0f} s" if late else (last[-1] if last else f"exit code {code}, no answer")
    return _Said(found, why)


def _take(line: str, sent: float, found: dict[str, _Answer]) -> None:
    received = time.time()
    mark = line.find(probe.MARK)
    if mark < 0:
        return
    try:
        answer = json.loads(line[mark + len(probe.MARK) :])
    except ValueError:
        return
    if "clock" in answer:
        told = float(answer["clock"])
        off = told - received if told > received else min(0.0, told - sent)
        found[answer["host"]] = _Answer({}, round(off, 3))
    elif answer.get("host") in found:
        found[answer["host"]].facts = answer
