"""Which devices this process may compute on."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DRIVER = Path("/dev/nvidiactl")
"""There where the kernel has NVIDIA's driver."""
NO_DEVICE = "No CUDA GPUs are available"
"""What torch says where a batch system gave this process none of the host's GPUs."""
log = logging.getLogger(__name__)


def cpu_is_asked_for() -> bool:
    """Whether the environment keeps this process on the CPU."""
    return os.environ.get("DS_ACCELERATOR") == "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def gpu_count() -> int:
    """GPUs that this process may use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() and not cpu_is_asked_for() else 0


def why_no_gpu() -> str:
    """Why torch can't use a GPU that is here, as with a driver that is too old; empty where nothing is wrong."""
    import torch

    if cpu_is_asked_for() or torch.cuda.is_available() or not DRIVER.exists():
        return ""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # a build without CUDA; CUDA's own reasons
        reason = (str(error).splitlines() or [repr(error)])[0]
        return "" if NO_DEVICE in reason else reason
    return ""


def best_device() -> torch.device:
    """The first GPU, or else the CPU; says so where there is a GPU that torch can't use."""
    import torch

    if gpu_count():
        return torch.device("cuda")
    if reason := why_no_gpu():
        log.warning("on the CPU: torch can't use this host's GPU (%s)", reason)
    return torch.device("cpu")


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device. To a GPU it goes from pinned memory, so that nobody waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def take_own_gpu(number: int) -> None:
    """Leave this process one of the GPUs that it sees. Before anything has run on one of them.

    Args:
        number: of the process; there may be more of them than GPUs.
    """
    count = gpu_count()
    if count > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % count]
