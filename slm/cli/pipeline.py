"""`slm pipeline` and `slm status`, which `launcher/pipeline.py` is too."""

from __future__ import annotations

import enum
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.common import need
from slm.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from slm.pipeline.graph import Plan
    from slm.pipeline.recovery import Recovery
    from slm.pipeline.run import Outcome

PLAIN_WIDTH = 160
"""Columns of tables in a file or a pipe."""
USAGE = (
    "pipeline PIPELINE [--where local|hostfile|slurm] [--dry-run] [--only STEP] [--from STEP] [--detach] [key=value …]"
)


class Where(enum.StrEnum):
    """Where train steps run: `local` on this machine, `hostfile` over ssh, `slurm` as a job for each step."""

    local = "local"
    hostfile = "hostfile"
    slurm = "slurm"


def pipeline(
    config: Annotated[str | None, typer.Argument(metavar="PIPELINE", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, run none.")] = False,
    only: Annotated[str | None, typer.Option(metavar="STEP", help="Make this step alone.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Make this step and all that comes from it again.")
    ] = None,
    where: Annotated[Where, typer.Option(help="Where the steps run.")] = Where.local,
    hostfile: Annotated[str | None, typer.Option(help="Hosts of the train steps, for --where hostfile.")] = None,
    site: Annotated[str | None, typer.Option(help="Site file: what SLURM is told; variables for all hosts.")] = None,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", min=0, help="Restarts of a train step that lost a rank or a host.")
    ] = 3,
    min_hosts: Annotated[
        int | None, typer.Option("--min-hosts", min=1, help="Go on with so few hosts of the hostfile; else all.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option("--time-limit", metavar="HH:MM:SS", help="Save and stop before so much time is up.")
    ] = None,
    away: Annotated[bool, typer.Option("--detach", help="Work on in the background, without this terminal.")] = False,
    show: Annotated[bool, typer.Option("--status", help="Show what is done, running or stale, and why.")] = False,
) -> None:
    """Make everything a pipeline's YAML asks for that is not made yet."""
    from rich.console import Console

    from slm.cli import elsewhere
    from slm.cli.detach import detach
    from slm.config.duration import parse_duration
    from slm.pipeline.planner import load_pipeline, make_plan
    from slm.pipeline.recovery import Recovery
    from slm.pipeline.run import choose
    from slm.pipeline.status import show_status

    path = need(config, USAGE, "ds_configs/pipelines/*.yaml")
    _check_together(where, hostfile, min_hosts, limit, away)
    limit_s = parse_duration(limit) if limit is not None else None
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    pipe, source = load_pipeline(path, overrides or []), (path, *(overrides or []))
    here = where is Where.local or show
    plan = make_plan(pipe, source=source) if here else elsewhere.plan_for(where.value, pipe, source, hostfile)
    if show:
        show_status(plan, console)
        return
    chosen = choose(plan, only=only, start=start)
    if dry_run and where is Where.slurm:
        elsewhere.show_scripts(plan, chosen, site)
    elif dry_run:
        _show_commands(plan, chosen, console)
    elif where is Where.slurm:
        elsewhere.submit(plan, chosen, site, console, again=start is not None)
    elif away:
        options: dict[str, object] = {"--where": where.value, "--hostfile": hostfile, "--site": site, "--only": only}
        options |= {"--from": start, "--max-restarts": max_restarts, "--min-hosts": min_hosts, "--time-limit": limit}
        detach(plan, options, source, console)
    else:
        recovery = Recovery(max_restarts)
        if hostfile is not None:
            plan, recovery = elsewhere.on_hosts(plan, hostfile, site, most=max_restarts, least=min_hosts)
        _run(plan, console, only, start, recovery, limit_s)


def _check_together(where: Where, hostfile: str | None, min_hosts: int | None, limit: str | None, away: bool) -> None:
    """Options about hosts come together, and those about this process are not for jobs.

    Raises:
        ConfigError: they don't.
    """
    if (where is Where.hostfile) != (hostfile is not None):
        raise ConfigError("--where hostfile and --hostfile FILE go together", mend="--where hostfile --hostfile hosts")
    if min_hosts is not None and hostfile is None:
        raise ConfigError("--min-hosts goes with --where hostfile")
    if where is Where.slurm and (limit is not None or away):
        option = "--detach" if away else "--time-limit"
        raise ConfigError(
            f"{option} does not go with --where slurm",
            mend="leave it out: jobs need no terminal; their time is in --site",
        )


def _show_commands(plan: Plan, chosen: Collection[str], console: Console) -> None:
    from slm.pipeline.commands import shown

    for i, step in enumerate(plan.steps, 1):
        if step.name in chosen:
            console.print(f"# {i}/{len(plan.steps)} {step.name}", highlight=False, markup=False, soft_wrap=True)
            line = shown(step.argv, step.environment)
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _run(
    plan: Plan, console: Console, only: str | None, start: str | None, recovery: Recovery, limit_s: float | None
) -> None:
    from slm.log import setup_logging
    from slm.pipeline.run import run_pipeline

    setup_logging()
    outcome = run_pipeline(plan, console, only=only, start=start, recovery=recovery, time_limit_s=limit_s)
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
