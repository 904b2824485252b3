"""Whether hosts are fit for a job: the probes' facts judged, one finding a check and host.

Judging is pure; `examine` asks the hosts and judges. `bad` would break a run or change its result, `warn` may be
meant so.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slm.cluster.hostfile import Host
from slm.cluster.reach import Report, ask_by_ssh, ask_here, make_request
from slm.errors import from_os_error

Level = Literal["ok", "warn", "bad"]
CLOCK_WARN_S, CLOCK_BAD_S = 1.0, 10.0
DISK_BAD_GIB, DISK_WARN_GIB = 2.0, 20.0
SHM_WARN_GIB = 1.0
DEFAULT_PORT = 29500
ANY_PORT = 0
"""A pipeline draws a port for each step: none has to be free beforehand."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check on one host; `mend` is empty when it is ok."""

    host: str
    check: str
    level: Level
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Wanted:
    """What the hosts are measured against.

    Attributes:
        here: this machine's own report: packages and code have to be the same.
        slots: host -> ranks it shall run; hosts that are missing take any number.
        master: host of rank 0, where `port` has to be free; empty: every host.
        port: of rank 0.
    """

    here: Report
    slots: dict[str, int]
    master: str = ""
    port: int = DEFAULT_PORT


def judge(reports: Sequence[Report], wanted: Wanted) -> list[Finding]:
    """All findings, host by host."""
    found: list[Finding] = []
    for report in reports:
        if not report.facts:
            mend = f"ssh {report.host} true   has to work without a password"
            found.append(Finding(report.host, "reachable", "bad", report.problem, mend))
            continue
        found.append(Finding(report.host, "reachable", "ok", "yes"))
        for name, check in _CHECKS.items():
            outcome = check(report, wanted)
            if outcome is not None:
                found.append(Finding(report.host, name, *outcome))
    return found


def examine(
    ask: Callable[[dict[str, Any]], list[Report]],
    hosts: Sequence[Host],
    *,
    folder: Path,
    shared: Path,
    port: int = DEFAULT_PORT,
    clear_locks: bool = False,
    each: int | None = None,
) -> list[Finding]:
    """Ask the hosts and judge their answers.

    Args:
        ask: brings the reports for a request.
        hosts: names and slots when they are known beforehand (a hostfile).
        folder: the checkout, which has to be at the same place everywhere.
        shared: folder of the runs, which all hosts have to share.
        each: ranks of every host, where the hosts are not known beforehand.

    Raises:
        MachineError: the shared folder can't be written here.
    """
    with _Token(shared) as token:
        request = make_request(str(folder), str(shared), token, [host.name for host in hosts], port, clear=clear_locks)
        here = ask_here({**request, "peers": [], "clear_locks": False})
        reports = ask(request)
    master = hosts[0].name if hosts else ""
    slots = {host.name: host.slots for host in hosts}
    if each is not None:
        slots = {report.host: each for report in reports}
    return judge(reports, Wanted(here, slots, master, port))


def preflight(hosts: Sequence[Host], *, folder: Path, shared: Path) -> tuple[list[Finding], str]:
    """What the doctor finds over ssh, and the address at which the other hosts know the first one."""
    reports: list[Report] = []

    def ask(request: dict[str, Any]) -> list[Report]:
        reports.extend(ask_by_ssh(hosts, request))
        return reports

    findings = [*launcher_findings(hosts), *examine(ask, hosts, folder=folder, shared=shared, port=ANY_PORT)]
    name = hosts[0].name
    known = [report.facts["addresses"].get(name, "") for report in reports[1:] if report.facts]
    outside = [address for address in known if address and not address.startswith("127.")]
    return findings, outside[0] if outside else name


class _Token:
    """A file in the shared folder that the other hosts have to see, while the block lasts."""

    def __init__(self, shared: Path) -> None:
        self.path = shared / f".slm-doctor-{secrets.token_hex(6)}"

    def __enter__(self) -> str:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            raise from_os_error(error, f"writing to {self.path.parent}") from error
        return self.path.name

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


Outcome = tuple[Level, str, str]


def _packages(report: Report, wanted: Wanted) -> Outcome:
    own, theirs = wanted.here.facts, report.facts
    python_here, python_there = (facts["python"].rpartition(".")[0] for facts in (own, theirs))
    if python_here != python_there or own["executable"] != theirs["executable"]:
        found = f"{theirs['executable']} is Python {theirs['python']}, here it is {own['executable']} {own['python']}"
        return "bad", found, "make the same environment at the same path on every host"
    differing = [
        f"{name} {theirs['versions'].get(name) or 'missing'} (here {version or 'missing'})"
        for name, version in own["versions"].items()
        if theirs["versions"].get(name) != version
    ]
    if differing:
        return "bad", ", ".join(differing), "pip install -c constraints.txt -e '.[all]' on that host"
    return "ok", f"torch {own['versions'].get('torch') or 'missing'}, Python {own['python']}", ""


def _code(report: Report, wanted: Wanted) -> Outcome:
    own, theirs = wanted.here.facts, report.facts
    if not theirs["code"]:
        return "bad", "no checkout here at the path it has there", "share the folder, or clone to the same path"
    if theirs["code"] != own["code"]:
        found = f"other code ({theirs['revision'] or 'no git'}, here {own['revision'] or 'no git'})"
        return "bad", found, "git pull on both, or share the folder"
    return "ok", theirs["revision"] or "same files", ""


def _devices(report: Report, wanted: Wanted) -> Outcome:
    gpus, cores, slots = report.facts["gpus"], report.facts["cores"], wanted.slots.get(report.host)
    found = f"{gpus} GPUs" if gpus else f"no GPU, {cores} cores"
    if slots is None:
        return "ok", found, ""
    if slots > (gpus or cores):
        return (
            "bad",
            f"{found}, slots={slots}",
            f"slots={gpus or cores} in the hostfile, or gpus_per_node in the site file",
        )
    if gpus and slots < gpus:
        return "warn", f"{found}, slots={slots}", f"slots={gpus} would use all"
    return "ok", f"{found}, slots={slots}", ""


def _network(report: Report, wanted: Wanted) -> Outcome | None:
    others = {peer: name for peer, name in report.facts["towards"].items() if peer != report.host}
    if not others:
        return None
    lost = [peer for peer, name in others.items() if name in ("", "lo")]
    if lost:
        mend = f"name it in DNS or /etc/hosts by its address in the network: getent hosts {lost[0]}"
        return "bad", f"no way to {', '.join(lost[:3])}", mend
    names = sorted(set(others.values()))
    if len(names) > 1:
        return "warn", f"{', '.join(names)}: different ways", "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME yourself"
    return "ok", names[0], ""


def _clock(report: Report, wanted: Wanted) -> Outcome:
    off = abs(report.clock_s)
    level: Level = "bad" if off >= CLOCK_BAD_S else ("warn" if off >= CLOCK_WARN_S else "ok")
    return level, f"{off:.1f} s off", "" if level == "ok" else "run a time service (chrony, ntp) on every host"


def _port(report: Report, wanted: Wanted) -> Outcome | None:
    if wanted.port == ANY_PORT or wanted.master not in ("", report.host):
        return None
    if report.facts["port_free"]:
        return "ok", f"{wanted.port} is free", ""
    return "bad", f"{wanted.port} is taken", "end what listens there (ss -ltnp), or choose another --master_port"


def _shared(report: Report, wanted: Wanted) -> Outcome:
    shared = report.facts["shared"]
    if not shared["exists"]:
        return "bad", f"no {shared['path']}", "mount the folder of the runs at the same path on every host"
    if not shared["seen"]:
        return "bad", f"{shared['path']} is another folder there", "all hosts have to see one file system"
    if not shared["writable"]:
        return "bad", f"{shared['path']} can't be written", "give this user the right to write there"
    return "ok", shared["path"], ""


def _disk(report: Report, wanted: Wanted) -> Outcome:
    free = report.facts["disk_gib"]
    if free is None:
        return "bad", "unknown", "is the folder mounted?"
    level: Level = "bad" if free < DISK_BAD_GIB else ("warn" if free < DISK_WARN_GIB else "ok")
    return level, f"{free:.0f} GiB free", "" if level == "ok" else "free some, or put runs= on another disk"


def _shm(report: Report, wanted: Wanted) -> Outcome:
    free = report.facts["shm_gib"]
    if free is None or free < SHM_WARN_GIB:
        found = "none" if free is None else f"{free:.2f} GiB free"
        return "warn", found, "NCCL and data workers use it; in a container: --shm-size=8g"
    return "ok", f"{free:.0f} GiB free", ""


def _locks(report: Report, wanted: Wanted) -> Outcome:
    stale = [lock["path"] for lock in report.facts["locks"] if lock["stale"] and not lock["cleared"]]
    cleared = [lock["path"] for lock in report.facts["locks"] if lock["cleared"]]
    if stale:
        mend = "slm doctor --clear-locks, or: rm " + " ".join(stale)
        return "bad", f"{len(stale)} stale: every run would wait for ever", mend
    if cleared:
        return "ok", f"{len(cleared)} stale, removed", ""
    if report.facts["locks"]:
        return "warn", "an operator is being compiled", "wait for it, or look again in five minutes"
    return "ok", "none", ""


def _compilers(report: Report, wanted: Wanted) -> Outcome:
    wants = ["ninja", "nvcc"] if report.facts["gpus"] else []
    has = report.facts["tools"]
    missing = [name for name in wants if name not in has]
    if wants and not {"c++", "g++"} & {*has}:
        missing.insert(0, "g++")
    if missing:
        return "warn", f"no {', '.join(missing)}", "needed only for DeepSpeed's own optimizers and offload"
    return "ok", ", ".join(has) or "none (none is needed on a CPU)", ""


_CHECKS: dict[str, Callable[[Report, Wanted], Outcome | None]] = {
    "packages": _packages,
    "code": _code,
    "devices": _devices,
    "network": _network,
    "clock": _clock,
    "port": _port,
    "shared folder": _shared,
    "disk": _disk,
    "/dev/shm": _shm,
    "operator locks": _locks,
    "compilers": _compilers,
}
"""In the order in which they are shown."""


def launcher_findings(hosts: Sequence[Host]) -> Iterator[Finding]:
    """What this machine needs to start ranks on the hosts."""
    for program in ("ssh", "pdsh"):
        if shutil.which(program):
            yield Finding("here", program, "ok", "found")
        else:
            yield Finding("here", program, "bad", "missing", f"install {program} on this machine")


def runs_folder(given: str | None) -> Path:
    """The shared folder that is checked: what was given, else `runs` where one stands."""
    return Path(os.path.abspath(given or "runs"))
