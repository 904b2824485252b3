"""What one host says of itself: run over ssh as text on the standard input of any Python 3.8 or newer.

It imports the standard library alone, because the host may have nothing else. `main` reads its request from the
variable REQUEST that stands before this text, answers in lines of JSON, and changes nothing on the host but stale
locks it was asked to remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import time

MARK = "slm-probe:"
"""Stands before each answer, so that what a login shell prints is told apart."""
YOUNG_S = 300.0
"""A lock without a living holder counts as stale when nothing beside it changed for so long: on a shared home the
holder may be on another host."""


def interfaces():
    """IPv4 addresses of this host: {interface: address}; empty where the system does not say."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # SIOCGIFADDR; an interface without an address
                found[name] = socket.inet_ntoa(fcntl.ioctl(asking.fileno(), 0x8915, request)[20:24])
    return found


def own_name():
    """The name of this host: SLURM's for it, where SLURM started this."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def interface_towards(host):
    """The interface through which `host` (name or IPv4 address) is reached; "" when it is not known.

    Nothing is sent: connecting a datagram socket only asks the routing table.
    """
    try:
        address = socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]
        known = interfaces()
        for name, own in known.items():
            if own == address:
                return name
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((address, 9))
            own = asking.getsockname()[0]
    except OSError:
        return ""
    return next((name for name, other in known.items() if other == own), "")


def address_of(host):
    """The IPv4 address that this host knows another by; "" when it knows none."""
    try:
        return socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]
    except OSError:
        return ""


def outward_interface():
    """The interface of the default route, or else the only one beside the loopback; "" when that is not clear.

    For a host whose own name stands for 127.0.0.1, as Debian writes it into /etc/hosts.
    """
    towards = interface_towards("192.0.2.1")  # TEST-NET-1: nobody's, so the default route leads there
    if towards:
        return towards
    others = [name for name in interfaces() if name != "lo"]
    return others[0] if len(others) == 1 else ""


def code_digest(folder):
    """sha256 over the Python files of `slm/` and `launcher/` below `folder`; "" when they are not there."""
    found = hashlib.sha256()
    paths = sorted(
        os.path.relpath(path, folder)
        for room in ("slm", "launcher")
        for path in glob.glob(os.path.join(folder, room, "**", "*.py"), recursive=True)
    )
    for path in paths:
        with open(os.path.join(folder, path), "rb") as file:
            found.update(path.encode() + b"\0" + hashlib.sha256(file.read()).digest())
    return found.hexdigest() if paths else ""


def revision(folder):
    """The commit checked out in `folder`; "" when git does not say."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", folder, "rev-parse", "--short=12", "HEAD"], stdout=-1, stderr=-1, timeout=5)
        return done.stdout.decode().strip() if done.returncode == 0 else ""
    return ""


def versions(packages):
    """Installed versions: {package: version}, null for those that are missing."""
    found: dict = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def gpus():
    """Number of NVIDIA GPUs, by the driver's device files, narrowed by CUDA_VISIBLE_DEVICES."""
    count = len(glob.glob("/dev/nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count if visible is None else min(count, len([part for part in visible.split(",") if part.strip()]))


def port_is_free(port):
    """Whether a server could listen on the port now."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError:
            return False
    return True


def is_open(path):
    """Whether a process of this host, of those one may look into, has the file open."""
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == path:
                return True
    return False


def operator_locks(clear=False):
    """Locks in the folder where torch compiles operators: [{path, stale, cleared}].

    A build that was killed leaves its `lock`, and every later run waits for it without a word
    (torch/utils/file_baton.py).
    """
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torch_extensions"
    )
    found = []
    for path in sorted(glob.glob(os.path.join(root, "**", "lock"), recursive=True)):
        with contextlib.suppress(OSError):
            folder = os.path.dirname(path)
            newest = max(os.path.getmtime(os.path.join(folder, name)) for name in os.listdir(folder))
            stale = not is_open(os.path.realpath(path)) and time.time() - newest > YOUNG_S
            if stale and clear:
                os.unlink(path)
            found.append({"path": path, "stale": stale, "cleared": bool(stale and clear)})
    return found


def shared_folder(path, token):
    """What this host sees of the shared folder: whether it is there, holds the token's file, can be written."""
    seen = os.path.isfile(os.path.join(path, token)) if token else True
    return {"path": path, "exists": os.path.isdir(path), "seen": seen, "writable": os.access(path, os.W_OK)}


def free_gib(path):
    """Free space in GiB, null where there is no such folder."""
    try:
        return round(shutil.disk_usage(path).free / 2**30, 2)
    except OSError:
        return None


def existing(path):
    """The nearest folder above `path` (or itself) that exists."""
    while not os.path.isdir(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def collect(request):
    """All that the doctor wants to know of this host.

    Args:
        request: {folder: the checkout, shared: the runs' folder, token: a file to see there, packages: […],
            peers: names of all hosts, empty: those of the SLURM job, port: rank 0's, clear_locks: bool}.
    """
    shared = request["shared"]
    peers = request["peers"] or job_nodes()
    return {
        "host": own_name(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": versions(request["packages"]),
        "revision": revision(request["folder"]),
        "code": code_digest(request["folder"]),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus(),
        "addresses": {peer: address_of(peer) for peer in peers},
        "towards": {peer: interface_towards(peer) for peer in peers},
        "port_free": port_is_free(request["port"]),
        "shared": shared_folder(shared, request["token"]),
        "disk_gib": free_gib(existing(shared)),
        "shm_gib": free_gib("/dev/shm"),
        "locks": operator_locks(request["clear_locks"]),
        "tools": [name for name in ("c++", "g++", "ninja", "nvcc", "git") if find_tool(name)],
    }


def job_nodes():
    """Names of the nodes of the SLURM job that this runs in; none outside of one."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        return []
    try:
        argv = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(argv, capture_output=True, text=True, timeout=10).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return []


def find_tool(name):
    """Whether a program is on the PATH or beside this interpreter."""
    return shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))


def say(answer):
    """One answer, a line."""
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(request):
    """Tell the time at once, then the rest."""
    say({"host": own_name(), "clock": time.time()})
    say(collect(request))


if __name__ == "__main__":
    main(globals()["REQUEST"])
