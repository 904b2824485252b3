"""Refuse a launch that can't fit, before a minute is spent on loading."""

from __future__ import annotations

from pathlib import Path

import torch

from slm.config.stage import StageConfig
from slm.engine.distributed import Place, ranks_here
from slm.plan.estimate import refuse_what_cannot_fit


def require_fit(config: StageConfig, place: Place) -> None:
    """Compare what is exact in the plan, a rank's states, with the memory that a rank has here.

    Raises:
        MachineError: they are larger.
    """
    local = ranks_here(place)
    gpu = place.device.type == "cuda"
    memory = torch.cuda.get_device_properties(place.device).total_memory if gpu else available_memory() / local
    refuse_what_cannot_fit(
        config, world=place.world_size, hosts=max(1, place.world_size // local), device_bytes=memory, gpu=gpu
    )


def available_memory() -> float:
    """Bytes that this host can still give; infinite where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    fields = dict(line.split(":", 1) for line in lines)
    return float(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else float("inf")
