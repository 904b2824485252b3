"""What accelerators can do: dense bf16 peak and memory, from their makers' data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from slm.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """A kind of accelerator: memory in GB (1e9 bytes), dense bf16 peak in TFLOP/s, link bandwidth in GB/s."""

    name: str
    memory_gb: float
    peak_tflops: float
    link_gb_s: float


# The first whose words all occur in a device's name. Peaks without sparsity; bandwidth between devices of a
# host, one direction: NVLink where the form has it, else PCIe.
KNOWN = (
    Device("GB200", 186, 2450, 900),
    Device("B200", 180, 2250, 900),
    Device("H200", 141, 989, 450),
    Device("GH200", 96, 989, 450),
    Device("H100 PCIe", 80, 756, 64),
    Device("H100 NVL", 94, 835, 300),
    Device("H100", 80, 989, 450),
    Device("H800", 80, 989, 200),
    Device("A100 40GB", 40, 312, 300),
    Device("A100", 80, 312, 300),
    Device("A800", 80, 312, 200),
    Device("L40S", 48, 362, 32),
    Device("L40", 48, 181, 32),
    Device("L4", 24, 121, 32),
    Device("A10G", 24, 70, 32),
    Device("A10", 24, 125, 32),
    Device("A40", 48, 150, 32),
    Device("A30", 24, 165, 100),
    Device("RTX A6000", 48, 155, 32),
    Device("RTX 6000 Ada", 48, 364, 32),
    Device("RTX 5090", 32, 210, 64),
    Device("RTX 4090", 24, 165, 32),
    Device("RTX 3090", 24, 71, 32),
    Device("MI300X", 192, 1307, 448),
    Device("MI250X", 128, 383, 200),
)
_GPUS = re.compile(r"(\d+)\s*[xX×]\s*(.+)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", re.IGNORECASE)


def find_device(name: str) -> Device | None:
    """The kind that a device's name tells, None if it is not known."""
    parts = re.split(r"[\s\-_]+", name.upper())
    for device in KNOWN:
        if all(
            any(part == word or (part.startswith(word) and word[-1].isalpha()) for part in parts)
            for word in device.name.upper().split()
        ):
            return device
    return None


def parse_gpus(text: str) -> tuple[int, Device]:
    """`8x80GB`, `8xH100`, `1xRTX 4090`: how many in a host, and of what kind.

    A size alone is taken for the smallest data-centre card that has it, for the estimate of time.

    Raises:
        ConfigError: neither a size nor a known card.
    """
    found = _GPUS.fullmatch(text.strip())
    if found is None or int(found[1]) < 1:
        raise ConfigError(f"--gpus {text}: expected COUNTxSIZE or COUNTxNAME, as 8x80GB or 8xH100")
    count, kind = int(found[1]), found[2].strip()
    size = _MEMORY.fullmatch(kind)
    if size is None:
        device = find_device(kind)
        if device is None:
            raise ConfigError(f"--gpus {text}: {kind} is not known", mend=f"give its memory instead: {count}x80GB")
        return count, device
    memory = float(size[1])
    same = [device for device in KNOWN if device.memory_gb == memory]
    guess = min(same, key=lambda device: device.peak_tflops) if same else None
    if guess is None:
        return count, Device(f"{memory:g} GB", memory, 312.0 if memory >= 40 else 100.0, 32.0)
    return count, Device(f"{memory:g} GB (time as on {guess.name})", memory, guess.peak_tflops, guess.link_gb_s)
