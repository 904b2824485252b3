"""A plan as SLURM jobs: one for each step, waiting for those it needs; models and shares of data as arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from slm.artifact import write_atomic
from slm.cluster.environment import FILE, forwarded, read_environment, write_environment
from slm.cluster.slurm import BatchJob, Place, Task, job_id, sbatch_argv, script
from slm.config.evaluation import EvalJob
from slm.config.site import Kind, SiteConfig
from slm.errors import ConfigError, MachineError
from slm.pipeline import commands
from slm.pipeline.graph import Plan, State, Step, states
from slm.pipeline.lock import RunLock
from slm.pipeline.planner import find_config
from slm.pipeline.queue import queued
from slm.pipeline.record import Record, read_record
from slm.pipeline.superseded import clear

FOLDER = "slurm"
"""Folder of the scripts in the run folder."""
KINDS: dict[str, Kind] = {"train": "train", "eval": "eval", "data": "data"}


def hosts_environment(site: SiteConfig, shell: dict[str, str]) -> dict[str, str]:
    """What every host gets: the shell's own variables for it, those the site names, and the site's file on top.

    Raises:
        ConfigError: the site's `env_file` is missing, malformed, or readable by others.
    """
    named = {name: shell[name] for name in site.forward if name in shell}
    own = read_environment(os.path.expanduser(site.env_file)) if site.env_file else {}
    return {**forwarded(shell), **named, **own}


def batch_jobs(plan: Plan, chosen: Collection[str]) -> list[BatchJob]:
    """The jobs that make the chosen steps, in an order in which they can be submitted."""
    found: list[BatchJob] = []
    for step in plan.steps:
        if step.name not in chosen:
            continue
        needs, after = tuple(_name(plan, need) for need in step.needs if need in chosen), tuple[str, ...]()
        if isinstance(step.job, EvalJob) and len(_models(step.job)) > 1:
            found.append(_evaluations(plan, step, needs))
            needs = (found[-1].name,)
        elif step.shares > 1:
            found.append(_shares(plan, step, needs))
            after = (found[-1].name,)
        task = Task(str(step.folder), _located(step.argv))
        found.append(_job(plan, step, _name(plan, step.name), (task,), needs, after))
    return found


def scripts(plan: Plan, chosen: Collection[str], site: SiteConfig) -> dict[str, str]:
    """The text of every script, by the name of its job.

    Raises:
        ConfigError: names and paths that SLURM can't be given.
    """
    place = _place(plan)
    return {job.name: script(job, site, place) for job in batch_jobs(plan, chosen)}


def submit(
    plan: Plan, chosen: Collection[str], site: SiteConfig, say: Callable[[str], None], *, again: bool = False
) -> dict[str, str]:
    """Write the scripts and hand them to SLURM; `pipeline.json` keeps their numbers.

    Args:
        again: the chosen steps are made again, done or not.

    Returns:
        Job name -> number; empty when all chosen steps are done.

    Raises:
        ConfigError: see `scripts`; a chosen step needs one that is neither done nor chosen.
        MachineError: jobs of an earlier submission still wait or run, or sbatch refuses.
    """
    with RunLock(plan.folder):
        refuse_while_queued(plan)
        found, record = states(plan), Record(plan)
        todo = [name for name, state in found.items() if name in chosen and (again or state.word != "done")]
        _require_inputs(plan, todo, found)
        texts = scripts(plan, todo, site)
        write_environment(plan.folder / FILE, hosts_environment(site, dict(os.environ)))
        for folder in (FOLDER, "logs"):
            (plan.folder / folder).mkdir(parents=True, exist_ok=True)
        for name in todo:
            if again or found[name].word == "stale":
                aside = clear(plan.step(name), record)
                if aside is not None:
                    say(f"{name}: made anew, the old one is {aside}")
        ids = dict[str, str]()
        for job in batch_jobs(plan, todo):
            path = plan.folder / FOLDER / f"{job.name}.sbatch"
            write_atomic(path, texts[job.name])
            needs, after = ([ids[name] for name in names] for names in (job.needs, job.after))
            try:
                ids[job.name] = job_id(_printed(sbatch_argv(str(path.absolute()), needs, after)))
            except MachineError as error:
                if ids:
                    error.mend = f"{error.mend}; those submitted before it wait: scancel {' '.join(ids.values())}"
                raise
            record.submitted(job.name.removeprefix(f"{plan.config.name}."), ids[job.name])
            waits = ", ".join((*job.needs, *job.after))
            say(f"{ids[job.name]}  {job.name}" + (f"  after {waits}" if waits else ""))
    return ids


def refuse_while_queued(plan: Plan) -> None:
    """Two that work in one run folder would ruin it.

    Raises:
        MachineError: jobs of an earlier submission of this run still wait or run.
    """
    alive = sorted(queued(list(read_record(plan.folder).get("slurm", {}).values())), key=int)
    if alive:
        raise MachineError(
            f"{len(alive)} jobs of this run still wait or run",
            where=str(plan.folder),
            mend=f"wait for them, or: scancel {' '.join(alive)}",
        )


def _require_inputs(plan: Plan, todo: Collection[str], found: Mapping[str, State]) -> None:
    for name in todo:
        missing = [need for need in plan.step(name).needs if need not in todo and found[need].word != "done"]
        if missing:
            raise ConfigError(
                f"step '{name}' needs {', '.join(missing)}, not done yet",
                mend="submit without --only, or make those first",
            )


def _printed(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"{argv[0]}: {error}", mend="run this where sbatch works, a login node") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MachineError(f"sbatch refused: {last}", where=argv[-1], mend="put right the site file, then run again")
    return done.stdout


def _place(plan: Plan) -> Place:
    checkout = str(Path(find_config("launcher/slurm/common.sh")).absolute().parents[2])
    env_file = str((plan.folder / FILE).absolute())
    return Place(str(Path.cwd()), checkout, str(Path(sys.executable).parent), env_file)


def _name(plan: Plan, step: str) -> str:
    return f"{plan.config.name}.{step}"


def _job(
    plan: Plan, step: Step, name: str, tasks: tuple[Task, ...], needs: tuple[str, ...], after: tuple[str, ...] = ()
) -> BatchJob:
    array = "_%a" if len(tasks) > 1 else ""
    log = str((plan.folder / "logs").absolute() / f"{name.removeprefix(f'{plan.config.name}.')}{array}.log")
    ranks = getattr(plan.config.steps.get(step.name), "ranks", None) or plan.config.ranks
    return BatchJob(name, KINDS.get(step.kind, "other"), tasks, log, needs, after, ranks, step.environment)


def _models(job: EvalJob) -> list[str]:
    return list(dict.fromkeys(job.references().values()))


def _evaluations(plan: Plan, step: Step, needs: tuple[str, ...]) -> BatchJob:
    """An array with a task for each model; the results stay beside the models, where the step then finds them."""
    assert isinstance(step.job, EvalJob)
    tasks = []
    for i, model in enumerate(_models(step.job)):
        out = str(plan.folder / FOLDER / f"{step.name}.models" / str(i))
        values = {"out": out, "model": model}
        kept = [word for word in step.argv if not word.startswith(("out=", "models=", "chains="))]
        tasks.append(Task(out, _located((*kept, *commands.overrides(values)))))
    return _job(plan, step, _name(plan, f"{step.name}.models"), tuple(tasks), needs)


def _shares(plan: Plan, step: Step, needs: tuple[str, ...]) -> BatchJob:
    """An array whose tasks build a share each. The step itself, once they have ended, joins them.

    It waits for their end only, not for a good one: it builds what a killed task has not, and what a task could not
    build it can't either, and then says why.
    """
    argv = _located(step.argv)
    tasks = [Task(str(step.folder), (*argv, "--task", f"{i}/{step.shares}"), is_share=True) for i in range(step.shares)]
    return _job(plan, step, _name(plan, f"{step.name}.shares"), tuple(tasks), needs)


def _located(argv: Sequence[str]) -> tuple[str, ...]:
    """The checkout's files from wherever the pipeline was started."""
    return tuple(find_config(word) if word.endswith((".py", ".yaml", ".yml")) else word for word in argv)
