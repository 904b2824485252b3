"""Two hosts on one machine: network namespaces joined by a bridge, with a real sshd in each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

NEEDED = {"sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh", "ip": "iproute2", "unshare": "util-linux"}
PORT = 2222
SSHD = """
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/{name}.pid
UsePAM no
StrictModes no
PasswordAuthentication no
"""
CLIENT = """
Host *
  Port {port}
  User root
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def what_is_missing() -> str:
    """Why two hosts can't be had here; empty when they can."""
    if os.geteuid() != 0:
        return "root is needed for network namespaces"
    path = os.environ["PATH"] + os.pathsep + "/usr/sbin:/sbin"
    lacking = [package for program, package in NEEDED.items() if shutil.which(program, path=path) is None]
    if lacking:
        return f"Debian packages are missing: {', '.join(lacking)} (make test-cluster installs them)"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        return "this machine allows no network namespaces"
    return ""


@dataclass
class Hosts:
    """The running hosts.

    Attributes:
        folder: keys, configurations and the hostfile.
        names: addresses of the hosts; the first is where commands are run.
        spaces: their network namespaces.
    """

    folder: Path
    names: tuple[str, str]
    spaces: tuple[str, str]

    @property
    def hostfile(self) -> Path:
        return self.folder / "hosts"

    @property
    def environment(self) -> dict[str, str]:
        """For commands on the first host: ssh and pdsh find key and port by a stand-in's options, nothing else."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin:/sbin"
        return {**os.environ, "PATH": path}

    def run(self, argv, *, cwd, timeout=240, **environment) -> subprocess.CompletedProcess:
        """A command on the first host."""
        inside = ["ip", "netns", "exec", self.spaces[0], *argv]
        variables = {**self.environment, **environment}
        return subprocess.run(inside, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout)

    def begin(self, argv, *, cwd, output: Path, **environment) -> subprocess.Popen:
        """A command on the first host that runs on; all it says goes to a file."""
        inside = ["ip", "netns", "exec", self.spaces[0], *argv]
        with open(output, "a") as file:
            return subprocess.Popen(
                inside,
                cwd=cwd,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ranks(self, host: int, word: str) -> list[int]:
        """Processes on a host that are ranks with this word on their command line."""
        inside = subprocess.run(["ip", "netns", "pids", self.spaces[host]], capture_output=True, text=True).stdout
        found = []
        for pid in inside.split():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if word in words and any(part.startswith("--local_rank=") for part in words):
                found.append(int(pid))
        return found

    def clear(self) -> None:
        """End everything on both hosts but sshd, and plug all cables in."""
        for host, space in enumerate(self.spaces):
            self.link(host, "up")
            inside = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
            for pid in map(int, inside):
                try:
                    if Path(f"/proc/{pid}/comm").read_text().strip() != "sshd":
                        os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue  # ended meanwhile

    def link(self, host: int, state: str) -> None:
        """Pull a host's cable (`down`), or plug it in again (`up`)."""
        _do("ip", "link", "set", self.spaces[host], state)


def start(folder: Path) -> Hosts:
    """Make the namespaces and start sshd in both; `stop` ends them."""
    tag = f"slm{os.getpid() % 100_000}"
    hosts = Hosts(folder, ("10.77.0.1", "10.77.0.2"), (f"{tag}a", f"{tag}b"))
    for key in ("host_key", "key"):
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "client").write_text(CLIENT.format(port=PORT, folder=folder))
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/client "$@"\n')
    (folder / "bin" / "ssh").chmod(0o755)
    hosts.hostfile.write_text("".join(f"{name} slots=1\n" for name in hosts.names))
    try:
        _do("ip", "link", "add", f"{tag}br", "type", "bridge")
        _do("ip", "link", "set", f"{tag}br", "up")
        for name, space in zip(hosts.names, hosts.spaces, strict=True):
            _do("ip", "netns", "add", space)
            _do("ip", "link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
            _do("ip", "link", "set", space, "master", f"{tag}br", "up")
            _do("ip", "-n", space, "addr", "add", f"{name}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _do("ip", "-n", space, "link", "set", link, "up")
            config = folder / f"{space}.conf"
            config.write_text(SSHD.format(port=PORT, folder=folder, name=space))
            sshd = shutil.which("sshd", path="/usr/sbin:/sbin") or "sshd"
            _do("ip", "netns", "exec", space, sshd, "-f", str(config), "-o", f"ListenAddress={name}")
        _wait_for_both(hosts)
    except BaseException:
        stop(hosts)
        raise
    return hosts


def stop(hosts: Hosts) -> None:
    """End what runs in the namespaces, then remove them."""
    for space in hosts.spaces:
        inside = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
        if inside:
            subprocess.run(["kill", "-9", *inside], capture_output=True)
        subprocess.run(["ip", "netns", "del", space], capture_output=True)
    subprocess.run(["ip", "link", "del", f"{hosts.spaces[0][:-1]}br"], capture_output=True)


def _wait_for_both(hosts: Hosts) -> None:
    end = time.monotonic() + 20
    for name in hosts.names:
        while hosts.run(["ssh", "-o", "BatchMode=yes", name, "true"], cwd="/").returncode:
            if time.monotonic() > end:
                raise RuntimeError(f"no sshd answers on {name}")
            time.sleep(0.2)


def _do(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
