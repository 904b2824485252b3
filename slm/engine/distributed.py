"""This process's place in the job, and the process group.

The only reader of RANK, WORLD_SIZE and LOCAL_RANK besides the loggers. On a CPU no operator is
compiled: torch's AdamW is used, and DeepSpeed's shared-memory communication is switched off.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from slm.artifact import digest
from slm.device import gpu_count, why_no_gpu
from slm.errors import InterruptedRunError, LostRankError, MachineError, PreemptedError, SlmError, from_os_error

Found = TypeVar("Found")

SETTLE_S = 0.1
"""How long this thread stands back after the last collective, for who trains in a process that goes on: gloo's threads
then let go of its tensors. One that still has to when the interpreter ends aborts the process (exit code -6); ranks of
their own do not wait for the interpreter (`leave_with`)."""
LATER_S = 30.0
"""What gloo, which finds missing ranks by itself, gets for saying so."""
LONG = datetime.timedelta(hours=12)
"""How long ranks wait for one that reads, converts or writes a whole model: longer than the process group would."""


@dataclass(frozen=True)
class Place:
    """Rank, number of ranks, rank on this host, and the device to use."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise MachineError(
            f"{name} is {text!r}, not a number", mend="unset it, or start by the deepspeed launcher"
        ) from None


def find_place() -> Place:
    """Read this process's place from the launcher's variables; alone without them.

    Raises:
        MachineError: the variables contradict one another, or there are more ranks here than GPUs.
    """
    rank, world_size, local_rank = _variable("RANK", 0), _variable("WORLD_SIZE", 1), _variable("LOCAL_RANK", 0)
    if not 0 <= rank < world_size:
        raise MachineError(
            f"RANK={rank} does not fit WORLD_SIZE={world_size}", mend="unset stale variables, or start by the launcher"
        )
    if count := gpu_count():
        if local_rank >= count:
            raise MachineError(
                f"rank {rank} is number {local_rank} of this host, which has {count} GPUs",
                mend="start as many ranks as there are GPUs, or set DS_ACCELERATOR=cpu",
            )
        torch.cuda.set_device(local_rank)
        return Place(rank, world_size, local_rank, torch.device("cuda", local_rank))
    return Place(rank, world_size, local_rank, torch.device("cpu"))


def device_name(device: torch.device) -> str:
    """For people: `cuda:0 (NVIDIA H100 80GB HBM3)`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def rank_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the numbers that a rank alone draws from a step on, as dropout does."""
    return int(digest([seed, step, rank])[:15], 16)


LOCAL_COUNTS = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""By which torchrun and DeepSpeed say how many ranks a host has."""


def launcher_counts_ranks() -> bool:
    """Whether the launcher says how many ranks this host has."""
    return any(name in os.environ for name in LOCAL_COUNTS)


def ranks_here(place: Place) -> int:
    """Ranks of this host, as the launcher says; else all."""
    said = next((_variable(name, 1) for name in LOCAL_COUNTS if name in os.environ), place.world_size)
    return max(1, min(place.world_size, said))


def prepare_environment() -> None:
    """What has to stand before deepspeed is imported; a process alone becomes a job of one rank.

    Raises:
        MachineError: this host has a GPU that torch can't use. On CPUs, unasked, a stage would take weeks; and the
            ranks of this host would wait for ever for those that have a GPU.
    """
    if reason := why_no_gpu():
        raise MachineError(
            f"torch can't use this host's GPU: {reason}",
            mend="install a torch that fits the driver (nvidia-smi shows its version), or set DS_ACCELERATOR=cpu",
        )
    if not gpu_count():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:  # alone: a MASTER_ADDR or MASTER_PORT is left over from another job
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update(alone)
    for name, value in (("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if os.environ.get("WORLD_SIZE") == "1":
        os.environ.setdefault("MASTER_PORT", "0")


@contextmanager
def process_group(
    place: Place, timeout_minutes: float = 10, *, stuck: Callable[[MachineError], None] | None = None
) -> Iterator[None]:
    """The default process group, through DeepSpeed, for the length of the block.

    Args:
        timeout_minutes: how long ranks wait for each other.
        stuck: told, in a thread, why this process is about to end: NCCL connects the ranks in one call, without a
            limit of its own, and nothing gets out of it.

    Raises:
        MachineError: the port of rank 0 is taken, ranks did not come, or NCCL can't connect them.
    """
    import deepspeed
    import deepspeed.ops

    on_cpu = place.device.type == "cpu"
    if on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "OMP_NUM_THREADS" not in os.environ:  # beside a GPU too: an offloaded optimizer works here
        share = (os.cpu_count() or 1) // ranks_here(place)
        torch.set_num_threads(max(1, min(share, len(os.sched_getaffinity(0)))))
    try:
        with _ending_if_stuck(60 * timeout_minutes + LATER_S, stuck):
            deepspeed.init_distributed(
                dist_backend="gloo" if on_cpu else "nccl",
                auto_mpi_discovery=False,
                verbose=False,
                timeout=datetime.timedelta(minutes=timeout_minutes),
            )
    except dist.DistError as error:
        raise _explain_meeting(error) from error
    try:
        yield
    except BaseException as error:
        if _all_leave(error, on_cpu):
            _take_apart()
        raise
    _take_apart()


def _all_leave(error: BaseException, on_cpu: bool) -> bool:
    """Whether the process group can be taken apart: that may wait for ranks that are gone, or that stay.

    Then the error would never be said. NCCL waits for every rank; gloo only lets go of its own connections.
    """
    agreed = isinstance(error, PreemptedError | InterruptedRunError)
    return agreed or (on_cpu and not isinstance(error, LostRankError))


def _take_apart() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(SETTLE_S)


@contextmanager
def _ending_if_stuck(seconds: float, stuck: Callable[[MachineError], None] | None) -> Iterator[None]:
    """End the process when the block takes longer: what waits in it can't be called back."""

    def end() -> None:
        error = MachineError(
            f"the ranks are not connected after {seconds / 60:.0f} minutes",
            where=f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}",
            mend="see the logs of the others, and slm doctor --hostfile HOSTS; NCCL_DEBUG=INFO shows what NCCL does",
        )
        if stuck is not None:
            stuck(error)
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _explain_meeting(error: Exception) -> MachineError:
    """Why the ranks did not meet."""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if "EADDRINUSE" in str(error):
        mend = "unset MASTER_PORT if it is left over from another job, or give a free one: deepspeed --master_port N …"
        return MachineError("the port on which ranks meet is taken", where=where, mend=mend)
    if isinstance(error, dist.DistBackendError):
        return MachineError(
            f"the ranks can't be connected: {_first_line(error)}",
            where=where,
            mend="is it one rank for each GPU? NCCL_DEBUG=INFO shows more; slm doctor --hostfile HOSTS looks at hosts",
        )
    return MachineError(
        f"the ranks did not all meet: {_first_line(error)}",
        where=where,
        mend="see the logs of the others, and slm doctor --hostfile HOSTS for network and firewall",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def all_sum(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum over ranks, in fp64."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return read_back(tensor)


def read_back(tensor: torch.Tensor) -> list[float]:
    """The numbers of a vector. On a GPU this waits for what is under way there, other ranks' part in it too."""
    return [float(value) for value in tensor.tolist()]


def all_counts(counts: Counter[str]) -> Counter[str]:
    """The sum of every rank's counts, on every rank. Collective."""
    found: list[Counter[str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, counts)
    return sum((one for one in found if one is not None), Counter())


def gather_dicts(own: dict[str, Any]) -> dict[str, Any]:
    """All ranks' entries in one dictionary. Collective."""
    found: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return {key: value for part in found for key, value in part.items()}


def barrier() -> None:
    """Wait for every rank."""
    dist.barrier()


def raise_first(failure: SlmError | None, *, group: dist.ProcessGroup | None = None) -> None:
    """Make one rank's failure everybody's: all ranks raise the first one, which says whose it was. Collective.

    Without it the others would wait for the rank that left, and die of a broken connection that
    hides the cause.
    """
    found: list[SlmError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, failure, group=group)
    for rank, error in enumerate(found):
        if error is not None:
            where = error.where if len(found) == 1 else f"{error.where} (rank {rank})".lstrip()
            raise type(error)(error.what, where=where, mend=error.mend) from failure


def from_main(place: Place, find: Callable[[], Found], *, within: datetime.timedelta | None = None) -> Found:
    """What `find` returns on rank 0, on every rank: what ranks look up by themselves may differ. Collective.

    Args:
        within: see `together`.

    Raises:
        SlmError: what `find` raised there.
    """
    found: list[Any] = [None]

    def look() -> None:
        if place.is_main:
            found[0] = find()

    together(look, within=within)
    dist.broadcast_object_list(found, src=0)
    return cast(Found, found[0])


def together(act: Callable[[], None], *, within: datetime.timedelta | None = None) -> None:
    """Run `act` on every rank; if it fails on one, all raise that failure. Collective.

    Args:
        within: how long the first rank may wait for the last; None is what the process group allows (10 minutes),
            after which it would take the last one for dead.

    Raises:
        SlmError: what `act` raised on the first rank where it failed; an `OSError` is explained first.
    """
    group = dist.new_group(backend="gloo", timeout=within) if within is not None else None
    failure: SlmError | None = None
    try:
        act()
    except SlmError as error:
        failure = error
    except OSError as error:
        failure = from_os_error(error, "writing")
    try:
        raise_first(failure, group=group)
    finally:
        if group is not None:
            dist.destroy_process_group(group)
