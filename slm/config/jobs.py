"""The data jobs there are: what `job:` in a file may name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from slm.config.base import Job
from slm.config.loader import load_config, read_layers
from slm.errors import ConfigError

JOBS = {
    "tiny": ("slm.config.tiny:TinyDataJob", "slm.tiny.build:build_tiny"),
    "codebook": ("slm.config.codebook:CodebookJob", "slm.speech.codebook_fit:fit_codebook"),
    "units": ("slm.config.units:UnitsJob", "slm.speech.unit_job:build_unit_set"),
    "shards": ("slm.config.shards:ShardsJob", "slm.data.job:build_shard_set"),
}
"""`job:` -> its configuration, and the function that runs it; imported only when named."""
SPLIT = ("shards", "units")
"""Jobs that can be built in shares."""


def load_data_job(path: str, overrides: Sequence[str] = (), overlays: Sequence[str] = ()) -> Job:
    """Read the file of a data job.

    Raises:
        ConfigError: `job:` names none, or the file has problems: all of them.
    """
    layer = read_layers(path, overrides, overlays)
    name = layer.values.get("job")
    if name not in JOBS:
        where = layer.where(("job",)) or path
        raise ConfigError(f"{where}: job: expected one of {', '.join(sorted(JOBS))}, got {name!r}")
    job: Job = load_config(_imported(JOBS[name][0]), path, overrides, overlays)
    return job


def run_data_job(job: Job, *, task: tuple[int, int] | None = None, join: bool = False) -> None:
    """Run a data job.

    Args:
        job: as `load_data_job` returned it.
        task, join: see `slm.data.job.build_shard_set`.

    Raises:
        ConfigError: the job can't be built in shares.
        SlmError: what the job raises.
    """
    name = str(getattr(job, "job", ""))
    arguments: dict[str, Any] = {"task": task, "join": join} if name in SPLIT else {}
    if not arguments and (task is not None or join):
        raise ConfigError(
            f"job {name} is built in one piece",
            mend=f"leave out --task and --join; they are for job: {', '.join(SPLIT)}",
        )
    _imported(JOBS[name][1])(job, **arguments)


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
