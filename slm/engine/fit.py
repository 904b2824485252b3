"""Refuse a launch that can't fit, before a minute is spent on loading."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from slm.config.stage import StageConfig
from slm.device import gpu_count
from slm.engine.distributed import Place, launcher_counts_ranks, ranks_here
from slm.plan.estimate import refuse_what_cannot_fit

GROUPS = Path("/sys/fs/cgroup")
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of a control group, of version 2 and of version 1: what it may use, and what it uses."""
GIVES_WAY = ("active_file", "inactive_file", "slab_reclaimable")


def require_fit(config: StageConfig, place: Place) -> None:
    """Compare what is exact in the plan, a rank's states, with the memory that a rank has here.

    Raises:
        MachineError: they are larger than its GPU, or than its share of the host's memory.
    """
    local = ranks_here(place)
    gpu = place.device.type == "cuda"
    if gpu and not launcher_counts_ranks():  # all of them, if one took ranks_here at its word
        local = min(local, gpu_count())
    refuse_what_cannot_fit(
        config,
        world=place.world_size,
        hosts=max(1, place.world_size // local),
        device_bytes=torch.cuda.get_device_properties(place.device).total_memory if gpu else None,
        host_bytes=available_memory() / local,
    )


def available_memory(proc: Path = Path("/proc"), groups: Path = GROUPS) -> float:
    """Bytes that this process can still get of its host, which a batch system limits by control groups.

    Infinite where the kernel does not say.
    """
    free = float("inf")
    if found := re.search(r"^MemAvailable:\s+(\d+) kB", _text(proc / "meminfo"), re.MULTILINE):
        free = float(found[1]) * 1024
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        top = groups if controllers == "" else groups / "memory"
        if controllers and "memory" not in controllers.split(","):
            continue
        below = path.strip("/")
        # a limit anywhere above counts as well
        for group in (top / below, *(top / parent for parent in Path(below).parents)):
            free = min(free, *(_left(group, *names) for names in LIMITS))
    return free


def _left(group: Path, limit: str, usage: str) -> float:
    """What a control group may still use. Page cache and reclaimable kernel memory give way: they count as free."""
    allowed, used = _text(group / limit).strip(), _text(group / usage).strip()
    if not allowed.isdigit() or not used.isdigit():
        return float("inf")  # "max", or no such file
    fields: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", _text(group / "memory.stat"), re.MULTILINE))
    # version 1 counts the groups below only in `total_…`, which version 2 does not have
    gives_way = sum(float(fields.get(f"total_{name}", fields.get(name, "0"))) for name in GIVES_WAY)
    return max(0.0, float(allowed) - float(used) + gives_way)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
