"""`--status`: the graph as a table of what is done, running or stale, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slm.artifact import read_status
from slm.pipeline.child import METRICS, last_record
from slm.pipeline.graph import Plan, Step, states
from slm.pipeline.lock import holder, is_held
from slm.pipeline.queue import Queued, queued
from slm.pipeline.record import read_record
from slm.pipeline.view import clock, describe

MARKS = {
    "done": "[green]✓ done[/]",
    "running": "[cyan]▶ running[/]",
    "stale": "[yellow]~ stale[/]",
    "queued": "[cyan]… queued[/]",
    "partial": "[yellow]◐ begun[/]",
    "failed": "[red]✗ failed[/]",
    "missing": "[dim]· to do[/]",
    "waiting": "[dim]· to do[/]",
}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    kind: str
    word: str
    why: str
    seconds: float


def rows(plan: Plan) -> list[Row]:
    """How every step stands, running and failed ones told apart from those merely not done."""
    kept = read_record(plan.folder)
    record = {entry["name"]: entry for entry in kept.get("steps", [])}
    jobs: dict[str, str] = kept.get("slurm", {})
    alive = queued(list(jobs.values()))
    held = is_held(plan.folder)
    found = []
    for step, state in zip(plan.steps, states(plan).values(), strict=True):
        entry = record.get(step.name, {})
        word, why = state.word, state.why
        if held and entry.get("state") == "running" and word != "done":
            word = "running"
            why = describe(last_record(step.folder / METRICS)) if step.kind == "train" else ""
        elif word in ("missing", "partial") and entry.get("state") == "failed":
            word, why = "failed", f"see {plan.folder}/logs/{step.name}.log"
        elif word == "partial" and step.kind == "train":
            status = read_status(step.folder) or {}
            if status.get("state") == "failed":  # a SLURM job's own word: no pipeline was there to keep it
                word = "failed"
                place = f"rank {status.get('rank')} on {status.get('host')}, step {status.get('step')}"
                why = f"{status.get('reason')} ({place})"
            elif status.get("steps"):
                why = f"{status['state']} at step {status['step']} of {status['steps']}; continues"
        if word != "done":
            word, why = _in_the_queue(step, word, why, jobs, alive)
        found.append(Row(step.name, step.kind, word, why, float(entry.get("seconds", 0.0))))
    return found


def _in_the_queue(
    step: Step, word: str, why: str, jobs: Mapping[str, str], alive: Mapping[str, Queued]
) -> tuple[str, str]:
    """State and reason with SLURM's word: of the step's job, or of the array before it."""
    mine = [jobs[name] for name in (f"{step.name}.shares", f"{step.name}.models", step.name) if name in jobs]
    for number in mine:
        if number in alive:
            job = alive[number]
            told = describe(last_record(step.folder / METRICS)) if job.runs and step.kind == "train" else ""
            return "running" if job.runs else "queued", f"SLURM job {number}: {job}" + (f"; {told}" if told else "")
    return word, "; ".join(filter(None, [f"SLURM job {mine[-1]}" if mine else "", why]))


def show_status(plan: Plan, console: Console) -> None:
    """Print the table."""
    table = Table(title=f"{plan.folder}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column, side in (("#", "right"), ("step", "left"), ("kind", "left"), ("state", "left"), ("time", "right")):
        table.add_column(column, justify="right" if side == "right" else "left", no_wrap=True)
    table.add_column("why", overflow="fold")
    lines = rows(plan)
    for i, row in enumerate(lines, 1):
        spent = clock(row.seconds) if row.seconds else ""
        table.add_row(str(i), row.name, row.kind, MARKS[row.word], spent, escape(row.why))
    console.print(table)
    done = sum(row.word == "done" for row in lines)
    console.print(f"{done} of {len(lines)} steps done", highlight=False)
    if is_held(plan.folder):
        by = holder(plan.folder / ".lock")
        console.print(f"a pipeline is at work: process {by.get('pid')} on {by.get('host')} since {by.get('since')}")
