"""Ending what a step left on its hosts: over ssh, exactly its own processes, with their stacks written first.

DeepSpeed 0.19.8 ends remote ranks by `pkill -f` of a pattern that other jobs of the same person fit too; and it ends
none when pdsh dies first. Here a process is the step's when its command line is a rank's or a launcher's and has the
step's own `out=FOLDER` and its run's environment file among its words.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from slm.cluster.reach import AT_ONCE, SSH

PATIENCE_S = 15.0
PROGRAM = """
import ctypes, json, os, signal, time
WORDS = set(json.loads({words!r}))

def space(pid):
    return os.readlink(f"/proc/{{pid}}/ns/net")

def found():
    pids = {{}}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{{name}}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\\0")
            rank = any(word.startswith("--local_rank=") for word in words)
            if WORDS <= set(words) and (rank or "deepspeed.launcher.launch" in words) and space(name) == space("self"):
                pids[int(name)] = rank
        except OSError:
            continue
    return pids

def send(pid, number):
    try:
        os.kill(pid, number)
    except OSError:
        pass

libc = ctypes.CDLL(None)
first = found()
for pid, rank in first.items():
    if rank:
        if not hasattr(libc, "tgkill") or libc.tgkill(pid, pid, int(signal.SIGUSR2)):
            send(pid, signal.SIGUSR2)
        send(pid, signal.SIGCONT)
if first:
    time.sleep(1)
end = time.time() + 5
left = found()
while left and time.time() < end:
    for pid in left:
        send(pid, signal.SIGKILL)
    time.sleep(0.1)
    left = found()
print(json.dumps({{"ended": len(first), "left": len(left)}}))
"""
"""Runs on a host, by its own `python3 -`. A stopped rank has to go on for a moment to write its stacks; its main thread
is asked for them (see `slm.engine.watch.end_stopped`)."""


def end_on_hosts(
    hosts: Sequence[str], words: Sequence[str], *, ssh: Sequence[str] = SSH, patience_s: float = PATIENCE_S
) -> dict[str, str]:
    """End every rank and launcher whose command line has all the words, on all hosts at once.

    Args:
        words: whole arguments: `out=runs/study/asr`, and what tells this checkout's run from another's of that name.

    Returns:
        Host -> what went wrong there, for those where it did: unreachable, or processes that can't be killed.
    """
    program = PROGRAM.format(words=json.dumps(list(words)))

    def end(host: str) -> str:
        argv = [*ssh, "--", host, "exec python3 -"]
        try:
            done = subprocess.run(argv, input=program, capture_output=True, text=True, timeout=patience_s)
        except subprocess.TimeoutExpired:
            return f"no answer in {patience_s:.0f} s"
        except OSError as error:
            return f"{argv[0]}: {error.strerror}"
        try:
            left = int(json.loads(done.stdout.strip().splitlines()[-1])["left"])
        except (IndexError, KeyError, ValueError):
            said = done.stderr.strip().splitlines()
            return said[-1] if said else f"exit code {done.returncode}"
        return f"{left} processes can't be killed" if left else ""

    with ThreadPoolExecutor(min(AT_ONCE, len(hosts))) as pool:
        found = dict(zip(hosts, pool.map(end, hosts), strict=True))
    return {host: problem for host, problem in found.items() if problem}
