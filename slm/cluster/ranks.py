"""Which rank a process is when SLURM or MPI started it, in the variables that PyTorch and DeepSpeed read.

`deepspeed` and `torchrun` set RANK and its like themselves; `srun` and `mpirun` set their own. The mapping is a pure
function of the environment. The address of rank 0 comes from SLURM's node list, its port from the job's number, so
that all ranks agree without asking each other.
"""

from __future__ import annotations

import itertools
import os
import re
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from slm.cluster.probe import interface_towards, outward_interface
from slm.errors import MachineError

FIRST_PORT, PORTS = 15000, 15000
"""Ports of rank 0 are drawn from here: below what Linux hands out for outgoing connections (32768 on)."""
SOCKET_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

_NODE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]|\[[0-9,-]+\])*"
_NODELIST = re.compile(rf"{_NODE}(?:,{_NODE})*")


@dataclass(frozen=True)
class _Starter:
    """The variables in which a program that starts ranks says who is who."""

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    job: tuple[str, ...]


_MPI = (
    _Starter(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    _Starter(
        "MVAPICH",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
        ("PMI_ID",),
    ),
    _Starter("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ("PMI_KVS", "PMI_JOBID")),
)


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT as far as they have to be set.

    A launcher's own RANK prevails; then MPI, then a step of `srun`. A batch script itself, or a shell inside an
    allocation, is no step: what runs there alone stays alone. MASTER_ADDR and MASTER_PORT are kept when both are
    set.

    Returns:
        Variables to add; empty when the process is alone, or started by a launcher.

    Raises:
        MachineError: the variables contradict each other, or nothing says where rank 0 is.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        missing = [name for name in ("RANK", "WORLD_SIZE") if name not in environment]
        if missing:
            raise MachineError(
                f"{missing[0]} is not set, but its partner is", mend="unset RANK and WORLD_SIZE, or use a launcher"
            )
        return {}
    for starter in _MPI:
        if starter.rank in environment and starter.size in environment:
            return _from_mpi(starter, environment)
    if "SLURM_PROCID" in environment and ("SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment):
        return _from_slurm(environment)
    return {}


def adopt_ranks(environment: MutableMapping[str, str] | None = None) -> None:
    """Set what `rank_variables` finds, and the network interface towards rank 0 unless it is set.

    gloo and NCCL otherwise take the address of the host's own name, which is 127.0.0.1 on many machines.

    Raises:
        MachineError: see `rank_variables`.
    """
    environment = os.environ if environment is None else environment
    environment.update(rank_variables(environment))
    address = environment.get("MASTER_ADDR", "")
    if environment.get("WORLD_SIZE", "1") == "1" or address in ("", "localhost") or address.startswith("127."):
        return
    if all(name in environment for name in SOCKET_VARIABLES):
        return
    interface = interface_towards(address)
    if interface == "lo":  # rank 0's own host, by a name that stands for the loopback there
        interface = outward_interface()
    if interface:
        for name in SOCKET_VARIABLES:
            environment.setdefault(name, interface)


def _from_mpi(starter: _Starter, environment: Mapping[str, str]) -> dict[str, str]:
    rank, size = _number(environment, starter.rank), _number(environment, starter.size)
    local_rank = _number(environment, starter.local_rank, rank)
    local_size = _number(environment, starter.local_size, size)
    if local_size == size:
        address = "127.0.0.1"
    else:
        address = _first_node(environment)
    job = next((environment[name] for name in starter.job if environment.get(name)), "")
    if not address and "MASTER_ADDR" not in environment:
        raise MachineError(
            f"{starter.name} says nothing of where rank 0 is",
            mend="mpirun -x MASTER_ADDR=FIRST_HOST -x MASTER_PORT=29500 …",
        )
    found = _variables(environment, rank, size, local_rank, local_size, address, job)
    if starter.local_rank in environment:
        found[starter.local_rank] = found["LOCAL_RANK"]  # DeepSpeed refuses to start where Open MPI's differs
    return found


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    rank, size = _number(environment, "SLURM_PROCID"), _number(environment, size_name, 1)
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    per_node = expand_counts(counts)
    node = _number(environment, "SLURM_NODEID", 0)
    local_size = per_node[node] if node < len(per_node) else size
    local_rank = _number(environment, "SLURM_LOCALID", rank)
    address = "127.0.0.1" if local_size == size else _first_node(environment)
    if not address and "MASTER_ADDR" not in environment:
        raise MachineError("SLURM names no nodes (SLURM_STEP_NODELIST)", mend="export MASTER_ADDR and MASTER_PORT")
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    job = ".".join((environment.get("SLURM_JOB_ID", ""), step, environment.get("SLURM_RESTART_COUNT", "0")))
    return _variables(environment, rank, size, local_rank, local_size, address, job)


def _variables(
    environment: Mapping[str, str], rank: int, size: int, local_rank: int, local_size: int, address: str, job: str
) -> dict[str, str]:
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise MachineError(
            f"rank {rank} of {size}, {local_rank} of {local_size} on this host: these don't fit each other",
            mend="start all ranks by one srun or mpirun",
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if visible and "," not in visible:
        local_device = 0  # --gpus-per-task: each rank sees one device, and that is its number 0
    else:
        local_device = local_rank
    found = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_device),
        "LOCAL_WORLD_SIZE": str(local_size),
    }
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return found
    address = environment.get("MASTER_ADDR", address)
    # a MASTER_PORT without an address is left over from another job: all ranks draw the same new one
    return {**found, "MASTER_ADDR": address, "MASTER_PORT": str(port_of(job))}


def port_of(job: str) -> int:
    """A port that is the same for all ranks of a job and most likely another for the next job."""
    return FIRST_PORT + zlib.crc32(job.encode()) % PORTS


def _first_node(environment: Mapping[str, str]) -> str:
    text = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    return expand_nodelist(text)[0] if text else ""


def expand_nodelist(text: str) -> list[str]:
    """`n[01-03,7],gpu5` as the names it stands for, in order; several brackets in a name multiply.

    Raises:
        MachineError: not a node list.
    """
    if not _NODELIST.fullmatch(text):
        raise MachineError(f"{text!r} is not a node list of SLURM")
    found: list[str] = []
    for word in re.findall(_NODE, text):
        parts = re.split(r"\[([^\]]*)\]", word)
        choices = [[part] if i % 2 == 0 else _ranges(part, text) for i, part in enumerate(parts)]
        found += ["".join(chosen) for chosen in itertools.product(*choices)]
    return found


def _ranges(text: str, whole: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if match is None or int(match[2] or match[1]) - int(match[1]) not in range(100_000):
            raise MachineError(f"{whole!r} is not a node list of SLURM")
        width = len(match[1])
        found += [f"{number:0{width}d}" for number in range(int(match[1]), int(match[2] or match[1]) + 1)]
    return found


def expand_counts(text: str) -> list[int]:
    """SLURM's tasks per node, `2(x3),1`, as `[2, 2, 2, 1]`; empty when it says nothing.

    Raises:
        MachineError: not such a list.
    """
    found: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part)
        if match is None:
            raise MachineError(f"{text!r} is not a list of tasks per node")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise MachineError(f"{name} is {text!r}, not a number", mend="start all ranks by one srun or mpirun")
    return int(text)
