"""`slm pipeline --where hostfile|slurm`: plans whose train steps run on other machines."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from slm.errors import ConfigError, MachineError

if TYPE_CHECKING:
    from rich.console import Console

    from slm.config.pipeline import PipelineConfig
    from slm.config.site import SiteConfig
    from slm.pipeline.graph import Plan
    from slm.pipeline.recovery import Recovery


def load_site(path: str | None) -> SiteConfig:
    """The site file, or a cluster without peculiarities."""
    from slm.config.loader import load_config
    from slm.config.site import SiteConfig

    return load_config(SiteConfig, path) if path is not None else SiteConfig()


def plan_for(
    where: str, config: PipelineConfig, source: tuple[str, ...], hostfile: str | None, master: str = ""
) -> Plan:
    """The plan with train steps for SLURM's scripts, or for the hosts of a file.

    Args:
        master: address of rank 0's host; the first host's name when it is not known yet.

    Raises:
        ConfigError: see `make_plan`; the hostfile is missing or wrong.
    """
    from slm.cluster.environment import FILE
    from slm.cluster.hostfile import read_hostfile
    from slm.pipeline import commands
    from slm.pipeline.planner import make_plan

    launch: commands.Launch = commands.in_a_batch_job
    if where == "hostfile":
        assert hostfile is not None
        env_file = str((Path(config.runs) / config.name / FILE).absolute())  # tells this checkout's run from another's
        first = master or read_hostfile(hostfile)[0].name
        launch = functools.partial(commands.on_hosts, hostfile=hostfile, master=first, env_file=env_file)
    return make_plan(config, source=source, launch=launch)


def ready_hosts(plan: Plan, hostfile: str, site: str | None) -> Plan:
    """Check every host, write the environment file, and plan with the address at which hosts know the first one.

    Raises:
        MachineError: a check is red; the table has been shown.
    """
    from slm.cli.common import ROOT
    from slm.cli.doctor import show_findings
    from slm.cluster.doctor import preflight
    from slm.cluster.environment import FILE, write_environment
    from slm.cluster.hostfile import read_hostfile
    from slm.pipeline.batch import hosts_environment
    from slm.pipeline.commands import hosts_environment as hosts_environment_of_launcher

    findings, master = preflight(read_hostfile(hostfile), folder=ROOT, shared=plan.folder.absolute())
    if any(finding.level != "ok" for finding in findings):
        show_findings(findings)
    red = sorted({finding.host for finding in findings if finding.level == "bad"})
    if red:
        raise MachineError(
            f"not fit to train: {', '.join(red)}", where=hostfile, mend="see the table; slm doctor again"
        )
    again = plan_for("hostfile", plan.config, plan.source, hostfile, master)
    steps = [step.environment for step in again.steps if step.kind == "train"]
    own = {name: value for step in steps for name, value in step.items() if name not in hosts_environment_of_launcher()}
    write_environment(plan.folder / FILE, {**hosts_environment(load_site(site), dict(os.environ)), **own})
    return again


def on_hosts(plan: Plan, hostfile: str, site: str | None, *, most: int, least: int | None) -> tuple[Plan, Recovery]:
    """The plan for checked hosts, and what is done when some are lost.

    Raises:
        ConfigError: more hosts are asked for than there are.
        MachineError: another pipeline holds the run folder; see `ready_hosts`.
    """
    from slm.cluster.hostfile import read_hostfile
    from slm.pipeline.lock import RunLock
    from slm.pipeline.recovery import OnHosts

    with RunLock(plan.folder):
        pass  # another pipeline's environment file and hostfile stay as they are
    hosts = read_hostfile(hostfile)
    if least is not None and least > len(hosts):
        raise ConfigError(f"--min-hosts {least}, and the hostfile has {len(hosts)}", where=hostfile)

    def ready(path: Path) -> Plan:
        return ready_hosts(plan, str(path), site)

    recovery = OnHosts(hosts, ready, most=most, least=len(hosts) if least is None else least)
    return ready_hosts(plan, hostfile, site), recovery


def show_scripts(plan: Plan, chosen: Collection[str], site: str | None) -> None:
    """Print every script that would be submitted, and the command that submits it."""
    from slm.cluster.slurm import sbatch_argv
    from slm.pipeline.batch import FOLDER, batch_jobs, scripts
    from slm.pipeline.commands import shown

    texts = scripts(plan, chosen, load_site(site))
    for job in batch_jobs(plan, chosen):
        path = str(plan.folder / FOLDER / f"{job.name}.sbatch")
        command = shown(sbatch_argv(path, *([f"JOB_OF.{name}" for name in names] for names in (job.needs, job.after))))
        sys.stdout.write(f"# {path}\n# {command}\n{texts[job.name]}\n")


def submit(plan: Plan, chosen: Collection[str], site: str | None, console: Console, *, again: bool) -> None:
    """Hand the steps that are not done to SLURM; `again` hands over all that are chosen."""
    from slm.pipeline.batch import submit as hand_over

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    ids = hand_over(plan, chosen, load_site(site), say, again=again)
    if ids:
        say(f"{len(ids)} jobs; slm status {plan.folder} shows them, scancel {' '.join(ids.values())} ends them")
    else:
        say(f"nothing to do: all of {plan.folder} is up to date")
