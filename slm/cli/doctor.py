"""`slm doctor`: is this machine, or is every host of a job, fit to run it?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.errors import ConfigError, MachineError

if TYPE_CHECKING:
    from slm.cluster.doctor import Finding
    from slm.cluster.reach import Report
    from slm.config.site import SiteConfig

MARKS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "bad": "[red]✗[/]"}


def doctor(
    hostfile: Annotated[str | None, typer.Option(help="Check every host of this file, over ssh.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Check nodes that SLURM gives, by srun.")] = False,
    site: Annotated[str | None, typer.Option(help="Site file: partition, account and so on, for --slurm.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes, for --slurm.")] = 1,
    shared: Annotated[str | None, typer.Option(help="Folder that all hosts share; default: runs.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of rank 0.")] = 29500,
    clear_locks: Annotated[bool, typer.Option("--clear-locks", help="Remove stale locks of operator builds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Check this machine, every host of a hostfile, or SLURM's nodes; exit code 4 when something would not work."""
    if hostfile is not None and slurm:
        raise ConfigError("--hostfile and --slurm exclude each other", mend="give one of them")
    from slm.cli.common import ROOT
    from slm.cli.elsewhere import load_site
    from slm.cluster.doctor import examine, launcher_findings, runs_folder
    from slm.cluster.hostfile import Host, read_hostfile
    from slm.cluster.reach import ask_by_ssh, ask_here

    hosts: Sequence[Host] = read_hostfile(hostfile) if hostfile is not None else ()
    place = load_site(site) if slurm else None

    def ask(request: dict[str, Any]) -> list[Report]:
        if hosts:
            return ask_by_ssh(hosts, request)
        return _by_srun(request, place, nodes) if place is not None else [ask_here(request)]

    findings = [
        *(launcher_findings(hosts) if hosts else ()),
        *examine(
            ask,
            hosts,
            folder=ROOT,
            shared=runs_folder(shared),
            port=port,
            clear_locks=clear_locks,
            each=place.resources("train").gpus_per_node if place is not None else None,
        ),
    ]
    bad = sum(finding.level == "bad" for finding in findings)
    if as_json:
        print(json.dumps({"ok": not bad, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        show_findings(findings)
    return MachineError.exit_code if bad else 0


def _by_srun(request: dict[str, Any], site: SiteConfig, nodes: int) -> list[Report]:
    from slm.cluster.reach import ask_by_srun
    from slm.cluster.slurm import doctor_argv

    return ask_by_srun(doctor_argv(site), nodes, request, patience_s=300.0)


def show_findings(findings: Sequence[Finding]) -> None:
    """One table, a check a line: green, or what to do."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("host", "check", "", "found"):
        table.add_column(column, overflow="fold")
    table.add_column("what to do", overflow="fold")
    last = ""
    for finding in findings:
        host = finding.host if finding.host != last else ""
        last = finding.host
        table.add_row(host, finding.check, MARKS[finding.level], escape(finding.found), escape(finding.mend))
    console.print(table)
    counts = {level: sum(finding.level == level for finding in findings) for level in MARKS}
    if counts["bad"]:
        console.print(f"[red]{counts['bad']} would not work[/], {counts['warn']} to look at")
    else:
        console.print(f"[green]fit[/], {counts['warn']} to look at")
