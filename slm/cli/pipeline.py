"""`slm pipeline` and `slm status`, which `launcher/pipeline.py` is too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.common import need
from slm.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from slm.pipeline.graph import Plan
    from slm.pipeline.run import Outcome

PLAIN_WIDTH = 160
"""Columns of tables in a file or a pipe."""
USAGE = "pipeline PIPELINE [--dry-run] [--only STEP] [--from STEP] [--status] [key=value …]"


def pipeline(
    config: Annotated[str | None, typer.Argument(metavar="PIPELINE", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, run none.")] = False,
    only: Annotated[str | None, typer.Option(metavar="STEP", help="Make this step alone.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Make this step and all that comes from it again.")
    ] = None,
    show: Annotated[bool, typer.Option("--status", help="Show what is done, running or stale, and why.")] = False,
) -> None:
    """Make everything a pipeline's YAML asks for that is not made yet."""
    from rich.console import Console

    from slm.pipeline.planner import load_pipeline, make_plan

    path = need(config, USAGE, "ds_configs/pipelines/*.yaml")
    plan = make_plan(load_pipeline(path, overrides or []), source=(path, *(overrides or [])))
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    if show:
        from slm.pipeline.status import show_status

        show_status(plan, console)
    elif dry_run:
        from slm.pipeline.commands import shown
        from slm.pipeline.run import choose

        chosen = choose(plan, only=only, start=start)
        for i, step in enumerate(plan.steps, 1):
            if step.name not in chosen:
                continue
            console.print(f"# {i}/{len(plan.steps)} {step.name}", highlight=False, markup=False, soft_wrap=True)
            line = shown(step.argv, step.environment)
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    else:
        _run(plan, console, only, start)


def _run(plan: Plan, console: Console, only: str | None, start: str | None) -> None:
    from slm.log import setup_logging
    from slm.pipeline.run import run_pipeline

    setup_logging()
    outcome = run_pipeline(plan, console, only=only, start=start)
    _close(plan, console, outcome, only)


def _close(plan: Plan, console: Console, outcome: Outcome, only: str | None) -> None:
    """The closing table: scores, what was expected, time per step, and where the report is."""
    from slm.pipeline.view import clock
    from slm.report.terminal import show_results

    if outcome.made:
        console.print(
            f"made {len(outcome.made)} of {len(plan.steps)} steps in {clock(outcome.seconds)}", highlight=False
        )
    elif only:
        console.print(f"nothing to do: {only} is up to date", highlight=False, markup=False)
    else:
        console.print(f"nothing to do: all {len(plan.steps)} steps of {plan.folder} are up to date", highlight=False)
    show_results(plan.folder, console)


def status(
    run: Annotated[str | None, typer.Argument(metavar="RUN", show_default=False)] = None,
) -> None:
    """Show the steps of a run folder: done, running or stale, and why."""
    from rich.console import Console

    from slm.pipeline.planner import load_pipeline, make_plan
    from slm.pipeline.record import read_record
    from slm.pipeline.status import show_status

    folder = need(run, "slm status RUN_FOLDER", "runs/*/pipeline.json")
    source = read_record(Path(folder)).get("source")
    if not source:
        raise ConfigError("no pipeline ran here", where=folder, mend="slm pipeline PIPELINE --status")
    plan = make_plan(load_pipeline(source[0], source[1:]), source=tuple(source))
    show_status(plan, Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH))
