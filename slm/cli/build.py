"""`slm data build` and `slm data unpack`; `data_shards/build.py` is the first of them."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from slm.cli.common import need
from slm.errors import ConfigError

USAGE = "data build JOB [--workers N] [--task I/N | --join] [key=value …]"


def data_build(
    config: Annotated[str | None, typer.Argument(metavar="JOB", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", show_default=False)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes side by side (= workers=N); default: one per processor.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="I/N", help="Build share I of N (from 0), as in a SLURM array.")
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="Join the shares that tasks built.")] = False,
) -> None:
    """Build data by a job file (= python data_shards/build.py); what is finished is kept."""
    path = need(config, USAGE, "data_shards/jobs/*.yaml")
    part = share(task)
    from slm.config.jobs import load_data_job, run_data_job
    from slm.log import setup_logging

    pairs = [*(overrides or []), *([f"workers={workers}"] if workers is not None else [])]
    job = load_data_job(path, pairs)
    setup_logging()
    run_data_job(job, task=part, join=join)


def data_unpack(
    folder: Annotated[str | None, typer.Argument(metavar="COLD", show_default=False)] = None,
    out: Annotated[str | None, typer.Argument(metavar="OUT", show_default=False)] = None,
) -> None:
    """Make a shard set of one that was built with compress: zstd."""
    usage = "slm data unpack COLD OUT"
    cold, target = need(folder, usage), need(out, usage)
    from slm.data.cold import unpack
    from slm.log import setup_logging

    setup_logging()
    unpack(cold, target)


def share(text: str | None) -> tuple[int, int] | None:
    """`3/16` as (3, 16).

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise ConfigError(f"--task: expected I/N such as 3/16, got {text!r}")
    return int(match[1]), int(match[2])
