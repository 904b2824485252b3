"""`slm speech units | codebook fit | codebook evaluate`: speech to units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from slm.cli.build import share
from slm.cli.common import Model, job_from

speech = typer.Typer(help="Units from speech, and what makes them.", no_args_is_help=True)
codebook = typer.Typer(help="Learn the units themselves, and judge them.", no_args_is_help=True)
speech.add_typer(codebook, name="codebook")

Settings = Annotated[list[str] | None, typer.Argument(metavar="[JOB.yaml] key=value...", show_default=False)]


@speech.command("units")
def units(
    settings: Settings = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes (= workers=N); default: one per GPU, or else per processor.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="I/N", help="Extract share I of N (from 0), as in a SLURM array.")
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="Join the shares that tasks extracted.")] = False,
) -> None:
    """Units of recordings: folder, tars or data set in, unit set out; what is finished is kept."""
    from slm.config.units import UnitsJob
    from slm.log import setup_logging
    from slm.speech.unit_job import build_unit_set

    usage = (
        "slm speech units [JOB.yaml] out=UNITS speech=SPEECH source.kind=folder source.path=FOLDER [--task I/N|--join]"
    )
    job = _job(UnitsJob, [*(settings or []), *([f"workers={workers}"] if workers is not None else [])], usage)
    part = share(task)
    setup_logging()
    build_unit_set(job, task=part, join=join)


def _job(cls: type[Model], settings: Sequence[str], usage: str) -> Model:
    """A job from a file and `key=value` arguments, or from those alone."""
    from slm.config.loader import load_config

    if settings and "=" not in settings[0]:
        return load_config(cls, settings[0], settings[1:])
    return job_from(cls, settings, usage)
