"""The group `slm speech`; its commands that make units, and learn and judge codebooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from slm.cli import speech_models
from slm.cli.build import share
from slm.cli.common import Model, job_from

speech = typer.Typer(help="Units from speech, and what makes them.", no_args_is_help=True)
codebook = typer.Typer(help="Learn the units themselves, and judge them.", no_args_is_help=True)
speech.add_typer(codebook, name="codebook")
speech.command("convert")(speech_models.convert)
speech.command("env")(speech_models.env)

Settings = Annotated[list[str] | None, typer.Argument(metavar="[JOB.yaml] key=value...", show_default=False)]


@speech.command("units")
def units(
    settings: Settings = None,
    extractor: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Refuse a speech artifact of another extractor (= extractor=NAME)."),
    ] = None,
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
    options = [f"{key}={value}" for key, value in (("extractor", extractor), ("workers", workers)) if value is not None]
    job = _job(UnitsJob, [*(settings or []), *options], usage)
    part = share(task)
    setup_logging()
    build_unit_set(job, task=part, join=join)


@codebook.command("fit")
def codebook_fit(settings: Settings = None) -> None:
    """Learn units from recordings by mini-batch k-means; a fit that was killed goes on where it was."""
    from slm.config.codebook import CodebookJob
    from slm.log import setup_logging
    from slm.speech.codebook_fit import fit_codebook

    usage = "slm speech codebook fit [JOB.yaml] out=SPEECH count=N features.kind=mel_kmeans source.kind=… source.path=…"
    job = _job(CodebookJob, settings or [], usage)
    setup_logging()
    fit_codebook(job)


@codebook.command("evaluate")
def codebook_evaluate(
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output, for scripts.")] = False,
) -> None:
    """How good a codebook is on recordings: distances, units in use, their entropy, repeats."""
    from slm.config.codebook import CodebookEvaluation
    from slm.speech.codebook_evaluate import evaluate_codebook

    usage = "slm speech codebook evaluate speech=SPEECH source.kind=folder source.path=FOLDER [--json]"
    found = evaluate_codebook(_job(CodebookEvaluation, settings or [], usage))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:<14} {'-' if value is None else f'{value:,.4g}' if isinstance(value, float) else value}")


def _job(cls: type[Model], settings: Sequence[str], usage: str) -> Model:
    """A job from a file and `key=value` arguments, or from those alone."""
    from slm.config.loader import load_config

    if settings and "=" not in settings[0]:
        return load_config(cls, settings[0], settings[1:])
    return job_from(cls, settings, usage)
