"""The commands that do one thing: check, train, make models, evaluate, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from slm.cli.common import job_from, need
from slm.errors import ConfigError
from slm.startup import importing

Pairs = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", show_default=False)]
File = Annotated[str | None, typer.Argument(show_default=False)]


def validate(
    config: File = None,
    overrides: Pairs = None,
    overlay: Annotated[
        list[str] | None, typer.Option("--with", help="YAML laid over the file; may be repeated.")
    ] = None,
    print_config: Annotated[bool, typer.Option(help="Show every value that is set, and by which line.")] = False,
) -> None:
    """Check a YAML of any kind: stage, pipeline, evaluation, data job."""
    from slm.cli.kinds import load_any

    path = need(config, "slm validate CONFIG [key=value …]", "ds_configs/*/*.yaml", "data_shards/jobs/*.yaml")
    kind, lines = load_any(path, overrides or [], overlay or [])
    print("\n".join(lines) if print_config else f"{path}: a good {kind} configuration")


def train(
    config: Annotated[str | None, typer.Option("--config", help="The stage's YAML.")] = None,
    overrides: Pairs = None,
    overlay: Annotated[list[str] | None, typer.Option("--with", help="YAML laid over it; may be repeated.")] = None,
) -> int:
    """Train one stage in this process (several ranks: deepspeed launcher/train.py …)."""
    from slm.cluster.ranks import adopt_ranks
    from slm.config.loader import load_config
    from slm.config.stage import StageConfig

    adopt_ranks()
    path = need(config, "slm train --config CONFIG [--with OVERLAY] [key=value …]", "ds_configs/*/*.yaml")
    stage = load_config(StageConfig, path, overrides or [], overlay or [])
    with importing():
        from slm.engine.distributed import prepare_environment

        prepare_environment()  # before anything imports deepspeed
        from slm.engine.run import train as run

    return run(stage, command=" ".join(["slm", *sys.argv[1:]]))


def model_tiny_base(overrides: Pairs = None) -> None:
    """Make the tiny world's random-weight Llama: out=… tokenizer=…"""
    from slm.config.tiny import TinyBaseJob
    from slm.log import setup_logging

    job = job_from(TinyBaseJob, overrides or [], "slm model tiny-base out=FOLDER tokenizer=FOLDER [key=value …]")
    setup_logging()
    from slm.tiny.base import make_base

    make_base(job)


def model_import(overrides: Pairs = None) -> None:
    """The text path of an Mllama (Llama 3.2 Vision) as a plain Llama: out=… model=…"""
    from slm.config.models import ImportJob
    from slm.log import setup_logging

    job = job_from(ImportJob, overrides or [], "slm model import out=FOLDER model=FOLDER")
    setup_logging()
    from slm.model.mllama import import_text_model

    import_text_model(job)


def model_expand(overrides: Pairs = None) -> None:
    """Grow a text model's vocabulary by the speech units: out=… model=… tokenizer=…"""
    from slm.config.models import ExpandJob
    from slm.log import setup_logging

    usage = "slm model expand out=FOLDER model=STEP tokenizer=FOLDER [key=value …]"
    job = job_from(ExpandJob, overrides or [], usage)
    setup_logging()
    from slm.model.vocabulary import expand

    expand(job)


def model_discount(overrides: Pairs = None) -> None:
    """A trained adapter at a smaller scale: out=… model=… scale=0.5 scope=lora|all"""
    from slm.config.models import DiscountJob
    from slm.log import setup_logging

    job = job_from(DiscountJob, overrides or [], "slm model discount out=FOLDER model=STEP scale=0.5 [scope=lora|all]")
    setup_logging()
    from slm.merging.discount import discount

    discount(job)


def merge(
    recipe: File = None,
    out: File = None,
    models: Annotated[list[str] | None, typer.Argument(metavar="[label=STEP]...", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of DARE's random mask.")] = 0,
) -> None:
    """Merge models by a mergekit recipe whose models are labels."""
    from slm.config.loader import from_mapping
    from slm.config.models import MergeJob
    from slm.log import setup_logging

    usage = "slm merge RECIPE.yml OUT label=STEP [label=STEP …]"
    path = need(recipe, usage, "ds_configs/merge/*.yml")
    folder = need(out, usage)
    pairs = dict(text.partition("=")[::2] for text in models or [])
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    job = from_mapping(MergeJob, {"out": folder, "recipe": text, "models": pairs, "seed": seed}, "command line")
    setup_logging()
    from slm.merging.merge import merge as run

    run(job)


def export(model: File = None, out: File = None, overrides: Pairs = None) -> None:
    """A step as a standard PEFT adapter, or form=merged: folded into its base, file by file."""
    from slm.config.loader import from_mapping
    from slm.config.models import ExportJob
    from slm.log import setup_logging

    usage = "slm export STEP OUT [form=adapter|merged] [dtype=keep|fp32|bf16] [base_name=HUB_ID]"
    pairs = dict(text.partition("=")[::2] for text in overrides or [])
    values = {**pairs, "model": need(model, usage, "runs/*/*/MANIFEST.json"), "out": need(out, usage)}
    job = from_mapping(ExportJob, values, "command line")
    setup_logging()
    from slm.merging.export import export as run

    run(job)


def evaluate(config: File = None, overrides: Pairs = None) -> int:
    """Evaluate models (= python -m slm.eval)."""
    path = need(config, "slm eval CONFIG [key=value …]", "ds_configs/eval/*.yaml")
    from slm.engine.load import load_any
    from slm.eval.command import evaluate as run

    return run(path, overrides or [], load_any)


def report(
    run: File = None,
    again: Annotated[bool, typer.Option("--again", help="Write it although it is up to date.")] = False,
) -> None:
    """Write RUN/report.html from what the run's steps left."""
    folder = need(run, "slm report RUN_FOLDER", "runs/*/pipeline.json")
    from slm.log import setup_logging
    from slm.report.build import build_report
    from slm.report.results import job_of_run

    setup_logging()
    build_report(job_of_run(Path(folder)), again=again)
