"""DeepSpeed's operators that are compiled on first use: what a run needs of them, and locks left behind.

A run that is killed while an operator compiles leaves a file `lock` in the operator's folder, and every
later run waits for it for ever, silently. A lock is stale when no process here holds it open; on a
network disk, where the builder may be another host, it must also have stood for ten minutes.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from slm.config.zero import OFFLOAD, offload_device
from slm.engine.distributed import Place
from slm.errors import MachineError

log = logging.getLogger(__name__)

PATIENCE_S = 600
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse")


def cache_folder() -> Path:
    """Where torch keeps compiled operators."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "torch_extensions"


def clear_stale_locks(folder: Path) -> list[Path]:
    """Remove locks that no live builder holds, and say so.

    Returns:
        The locks that were removed.
    """
    locks = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/lock") if path.is_file()]
    held = set(_open_files()) if locks else set()
    removed = []
    for lock in locks:
        if str(lock.resolve()) in held:
            log.info("%s: an operator is being compiled by another process", lock.parent)
            continue
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            continue  # its builder is done
        if _on_network(lock) and age < PATIENCE_S:
            log.warning("%s: taken %.0f s ago, perhaps by another host; if this run hangs, remove it", lock, age)
            continue
        lock.unlink(missing_ok=True)
        log.warning("%s: left by a run that was killed while compiling; removed", lock)
        removed.append(lock)
    return removed


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, which `initialize` does in any case, with its compiled function left as it is written.

    The decorator alone loads torch's whole compiler (a second of CPU time in every rank), for an optimizer
    that no stage can choose. What else a run compiles is not touched.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def _open_files() -> Iterator[str]:
    """Files that processes of this host hold open, as far as they can be seen."""
    for link in glob.glob("/proc/[0-9]*/fd/*"):  # pathlib's raises when a process ends meanwhile
        with contextlib.suppress(OSError):
            yield os.readlink(link)


def _on_network(path: Path) -> bool:
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, fs, *_ = line.split()
            if str(path.resolve()).startswith(point.rstrip("/") + "/") and len(point) > len(best):
                best, kind = point, fs
    return kind.startswith(NETWORK)


def prepare_operators(ds_config: dict[str, Any], place: Place) -> None:
    """Before the first operator is loaded: stale locks go, and what NVMe offload needs has to be there.

    Raises:
        MachineError: NVMe offload without libaio, without a compiler, or without a folder to write to.
    """
    if place.local_rank == 0:
        clear_stale_locks(cache_folder())
    sections = [name for name in OFFLOAD if offload_device(ds_config, name) == "nvme"]
    if not sections:
        return
    _require_aio()
    for section in sections:
        folder = Path(ds_config["zero_optimization"][section]["nvme_path"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"NVMe offload can't write: {error.strerror}", where=str(folder)) from None


def _require_aio() -> None:
    """
    Raises:
        MachineError: what keeps DeepSpeed's asynchronous file operator from being built or loaded.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import CUDA_HOME

    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise MachineError(
            f"NVMe offload needs a C++ compiler, and {compiler} is not there",
            mend="install g++ and ninja, or use ds_configs/zero/zero3_offload.json",
        )
    if shutil.which("ninja") is None:
        raise MachineError("NVMe offload needs ninja to build its operator", mend="pip install ninja")
    if torch.cuda.is_available() and CUDA_HOME is None:
        raise MachineError(
            "NVMe offload on a GPU needs the CUDA toolkit to build its operator, and there is none",
            mend="install it or set CUDA_HOME to where it is, or use ds_configs/zero/zero3_offload.json",
        )
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise MachineError(
            "NVMe offload needs libaio and its headers",
            mend="install libaio-dev (Debian) or libaio-devel, or use ds_configs/zero/zero3_offload.json",
        )
