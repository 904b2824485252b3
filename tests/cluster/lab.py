"""A real SLURM of two nodes on this machine: munge, slurmctld and two slurmd, all of them this test's own."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
NODES = ("n1", "n2")
# `cred_expire` is also how long a requeued job waits before it starts again: two minutes by default.
CONFIG = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,builtin_interval=2
ReturnToService=2
MessageTimeout=60
SlurmdTimeout=600
MinJobAge=7200
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 State=UNKNOWN
PartitionName=lab Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def what_is_missing() -> str:
    """Why SLURM can't be had here; empty when it can."""
    if os.geteuid() != 0:
        return "root is needed for slurmd"
    lacking = sorted({package for program, package in NEEDED.items() if shutil.which(program, path=PATH) is None})
    return f"Debian packages are missing: {', '.join(lacking)} (make test-cluster installs them)" if lacking else ""


@dataclass
class Lab:
    """The running cluster.

    Attributes:
        folder: configuration, logs and state of the daemons.
        daemons: their processes.
    """

    folder: Path
    daemons: list[subprocess.Popen] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """For everything that talks to the cluster."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        return {**own, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, argv, *, cwd="/", check=True, **environment) -> subprocess.CompletedProcess:
        """A command that may talk to the cluster."""
        done = subprocess.run(
            list(map(str, argv)),
            cwd=cwd,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(map(str, argv))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job that is no array."""
        said = self.run(["scontrol", "--oneliner", "show", "job", job]).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", said))

    def wait(self, job: str, seconds: float) -> dict[str, str]:
        """Until a job has ended for good."""
        wait_until(lambda: self.facts(job)["JobState"] not in LIVE, seconds, f"job {job}", self.queue)
        return self.facts(job)

    def wait_for_all(self, seconds: float) -> None:
        """Until no job waits or runs."""
        wait_until(lambda: not self.queue(), seconds, "all jobs", self.queue)

    def queue(self) -> str:
        """The jobs that wait or run."""
        return self.run(["squeue", "--noheader", "--format=%i %j %T %r %M"]).stdout

    def logs(self) -> str:
        """What the daemons wrote."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))


LIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")


def wait_until(true: Callable[[], object], seconds: float, what: str, also: Callable[[], str] = str) -> None:
    """Look again and again.

    Raises:
        AssertionError: it did not come true in time.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:.0f} s\n{also()}")
        time.sleep(0.2)


def start(folder: Path) -> Lab:
    """Start the daemons and wait for both nodes; `stop` ends them."""
    lab = Lab(folder)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    ports = dict(zip(("controller", *NODES), _free_ports(3), strict=True))
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=socket.gethostname(), **ports))
    munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    munge["seed-file"] = "munge.seed"
    try:
        _daemon(lab, "munged", "--foreground", "--force", *(f"--{key}={folder / name}" for key, name in munge.items()))
        wait_until((folder / "munge.socket").exists, 20, "munged", lab.logs)
        _daemon(lab, "slurmctld", "-D", "-c")
        for name in NODES:
            _daemon(lab, "slurmd", "-D", "-N", name)
        wait_until(lambda: _idle(lab) == 2, 60, "two idle nodes", lab.logs)
    except BaseException:
        stop(lab)
        raise
    return lab


def stop(lab: Lab) -> None:
    """Cancel what is left, then end the daemons, the last one first."""
    subprocess.run(["scancel", "--state=PENDING"], env=lab.environment, capture_output=True, timeout=60)
    subprocess.run(["scancel", "--state=RUNNING"], env=lab.environment, capture_output=True, timeout=60)
    end = time.monotonic() + 60
    while len(lab.daemons) > 1 and lab.run(["squeue", "--noheader"], check=False).stdout and time.monotonic() < end:
        time.sleep(0.5)
    for daemon in reversed(lab.daemons):
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for process in _left(lab):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _left(lab: Lab) -> list[int]:
    """Processes of this cluster that outlived it: steps' own daemons, and what they had started."""
    mark = f"SLURM_CONF={lab.folder / 'slurm.conf'}".encode()
    found = []
    for path in map(Path, glob.glob("/proc/[0-9]*/environ")):  # pathlib's raises when a process ends meanwhile
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


def _idle(lab: Lab) -> int:
    return lab.run(["sinfo", "--noheader", "--Node", "--format=%t"], check=False).stdout.split().count("idle")


def _daemon(lab: Lab, name: str, *options: str) -> None:
    program = shutil.which(name, path=PATH) or name
    with open(lab.folder / f"{name}{''.join(options[-1:]) if name == 'slurmd' else ''}.log", "w") as log:
        daemon = subprocess.Popen(
            [program, *options],
            env=lab.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with_the_tests,
        )
    lab.daemons.append(daemon)


def _end_with_the_tests() -> None:
    """In a daemon's process: Linux sends it SIGTERM when the tests' process is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found
