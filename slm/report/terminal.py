"""The closing table on a terminal: scores, expectations, time spent, and where the report is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from slm.errors import DataError
from slm.report.results import Results, job_of_run, task_name


def show_results(run: Path, console: Console) -> None:
    """Print what a run reached; says so when it has not been evaluated."""
    page = run / "report.html"
    try:
        results = Results(job_of_run(run))
    except DataError as error:
        console.print(f"no results yet: {error.what} ({error.where})", highlight=False, markup=False)
        return
    console.print(score_table(results))
    if results.job.figures:
        console.print(check_table(results))
    console.print(time_line(results), highlight=False, markup=False)
    if page.is_file():
        console.print(f"report: {page}", highlight=False, markup=False)


def score_table(results: Results) -> Table:
    """Models by tasks: error rates as such (↓), everything else as a share."""
    table = Table(title="scores", title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("checkpoint", no_wrap=True)
    for task in results.tasks:
        entries = [entry for label in results.labels if (entry := results.score(label, task))]
        error = bool(entries and entries[0].get("less_is_better"))
        table.add_column(task_name(task) + (" error ↓" if error else ""), justify="right")
    for label in results.labels:
        cells = [results.score(label, task) for task in results.tasks]
        table.add_row(label, *("–" if cell is None else f"{cell['raw']:.2f}" for cell in cells))
    return table


def check_table(results: Results) -> Table:
    """What the run was expected to reach, and whether it did."""
    table = Table(title="expected", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in results.checks():
        mark = {True: "[green]✓", False: "[red]✗ missed", None: "[yellow]? not measured"}[check.ok]
        shown = "–" if check.value is None else f"{check.value:.2f}"
        table.add_row(check.figure.what, shown, check.bound, mark)
    return table


def time_line(results: Results) -> str:
    """Seconds of every step, and of all."""
    spent = [(entry["name"], float(entry["seconds"])) for entry in results.record.get("steps", [])]
    parts = "  ".join(f"{name} {seconds:.0f}" for name, seconds in spent if seconds)
    return f"seconds: {parts}  (sum {sum(seconds for _, seconds in spent):.0f})"
