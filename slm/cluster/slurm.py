"""Batch scripts and the commands of SLURM, as pure functions that return text and argv.

Every value that reaches a script is a checked word or quoted; a path that sbatch can't take is refused. The part
that all scripts share (asking a step to stop, judging it, requeueing) is `launcher/slurm/common.sh`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slm.config.site import Kind, Resources, SiteConfig
from slm.errors import ConfigError, MachineError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_JOB_ID = re.compile(r"[0-9]{1,12}(;[A-Za-z0-9_.-]+)?")


@dataclass(frozen=True)
class Task:
    """One command and the artifact it makes.

    Attributes:
        folder: of the artifact.
        argv: the command.
        is_share: it makes a part of the artifact only, so its exit code alone says what became of it.
    """

    folder: str
    argv: tuple[str, ...]
    is_share: bool = False


@dataclass(frozen=True)
class BatchJob:
    """What one batch script does.

    Attributes:
        name: the job's name.
        kind: decides what is asked for, and how the step is asked to stop.
        tasks: one, or those of an array.
        log: file of all output, appended over requeues; `%a` stands for the array's task.
        needs: names of jobs that have to end well first.
        after: names of jobs that have to end first, however they do.
        ranks: of a train step on CPUs; with GPUs there is one a GPU.
        environment: variables besides those of the environment file.
    """

    name: str
    kind: Kind
    tasks: tuple[Task, ...]
    log: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    ranks: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where scripts run.

    Attributes:
        folder: where relative paths start.
        checkout: holds `launcher/slurm/common.sh`.
        programs: folder of the environment's `python`.
        env_file: variables of mode 0600; empty for none.
    """

    folder: str
    checkout: str
    programs: str
    env_file: str = ""


def script(job: BatchJob, site: SiteConfig, place: Place) -> str:
    """The text for sbatch.

    Raises:
        ConfigError: a name or path that can't stand in a script.
    """
    resources = site.resources(job.kind)
    lines = ["#!/usr/bin/env bash", *header(job, resources, site), "set -euo pipefail"]
    lines += [f"cd {_quoted(place.folder)}", f'export PATH={_quoted(place.programs)}:"$PATH" PYTHONUNBUFFERED=1']
    variables = [f"export SLM_ENV_FILE={_quoted(place.env_file)}", "slm_variables"] if place.env_file else []
    lines += [f". {_quoted(place.checkout + '/launcher/slurm/common.sh')}", *variables, *site.setup]
    lines += [f"export {name}={_quoted(value)}" for name, value in sorted(job.environment.items())]
    start = srun(job, resources) if job.kind == "train" else []
    steps = [_step(job, task, site, start) for task in job.tasks]
    if len(steps) == 1:
        return "\n".join([*lines, *steps]) + "\n"
    cases = [f"  {i}) {step} ;;" for i, step in enumerate(steps)]
    return "\n".join([*lines, 'case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]) + "\n"


def header(job: BatchJob, resources: Resources, site: SiteConfig) -> list[str]:
    """The `#SBATCH` lines."""
    if not _NAME.fullmatch(job.name):
        raise ConfigError(f"{job.name!r} can't be the name of a job", mend="letters, digits, '.', '_', '-'")
    options = [
        f"--job-name={job.name}",
        f"--output={sbatch_path(job.log)}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{site.signal_s}",
        "--kill-on-invalid-dep=yes",
    ]
    if len(job.tasks) > 1:
        options.append(f"--array=0-{len(job.tasks) - 1}")
    for name in ("partition", "account", "qos", "time"):
        if getattr(resources, name) is not None:
            options.append(f"--{name}={getattr(resources, name)}")
    options += _size(job, resources)
    if resources.gpus_per_node:
        options.append(f"--gpus-per-node={resources.gpus_per_node}")
    if resources.cpus_per_task is not None:
        options.append(f"--cpus-per-task={resources.cpus_per_task}")
    return [f"#SBATCH {option}" for option in [*options, *resources.extra]]


def _size(job: BatchJob, resources: Resources) -> list[str]:
    """Nodes and tasks. A train step has a task for each rank, any other step is one task on one node."""
    if job.kind != "train":
        return ["--nodes=1", "--ntasks=1"]
    nodes = resources.nodes or 1
    if resources.gpus_per_node:
        return [f"--nodes={nodes}", f"--ntasks-per-node={resources.gpus_per_node}"]
    if job.ranks % nodes:
        raise ConfigError(
            f"{job.ranks} ranks on {nodes} nodes: not the same number on each", mend="change ranks or nodes"
        )
    return [f"--nodes={nodes}", f"--ntasks-per-node={job.ranks // nodes}"]


def srun(job: BatchJob, resources: Resources) -> list[str]:
    """What starts the ranks: one task a rank; a rank that fails ends the others.

    `--export=ALL` because sbatch's `--export=NONE` would reach the ranks too; the cores are named again because srun
    does not take them over from sbatch (since 22.05).
    """
    cores = [f"--cpus-per-task={resources.cpus_per_task}"] if resources.cpus_per_task is not None else []
    return ["srun", "--export=ALL", "--kill-on-bad-exit=1", *cores]


def _step(job: BatchJob, task: Task, site: SiteConfig, start: Sequence[str]) -> str:
    command = ["slm_run"] if task.is_share else ["slm_step", job.kind, task.folder]
    words = [*command, str(site.max_requeues), *start, *task.argv]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    """A word for bash.

    Raises:
        ConfigError: a line break or another control character.
    """
    if not word.isprintable():
        raise ConfigError(f"{word!r} has a line break or a control character")
    return shlex.quote(word)


def sbatch_path(path: str) -> str:
    """A path for `#SBATCH --output=`; `%a` stays, any other `%` is a plain one.

    Raises:
        ConfigError: characters that sbatch can't be told literally.
    """
    if not path.isprintable() or set(path) & set("\"'\\`$"):
        raise ConfigError(f"{path!r} can't be the log of a job", mend="choose a folder without quotes and backslashes")
    text = re.sub(r"%(?!a\b)", "%%", path)
    return f'"{text}"' if " " in text or "#" in text else text


def sbatch_argv(path: str, needs: Sequence[str] = (), after: Sequence[str] = ()) -> list[str]:
    """Submit a script that waits until jobs have ended; prints the job's id alone.

    Args:
        path: of the script.
        needs: numbers of jobs that have to end well.
        after: numbers of jobs that have to end, however they do.
    """
    waits = [":".join((word, *ids)) for word, ids in (("afterok", needs), ("afterany", after)) if ids]
    return ["sbatch", "--parsable", *([f"--dependency={','.join(waits)}"] if waits else []), path]


def job_id(printed: str) -> str:
    """The id that `sbatch --parsable` printed, the cluster's name left out.

    Raises:
        MachineError: it printed something else.
    """
    text = printed.strip()
    if not _JOB_ID.fullmatch(text):
        raise MachineError(f"sbatch printed {text[:80]!r}, no job id")
    return text.partition(";")[0]


def squeue_argv(ids: Sequence[str]) -> list[str]:
    """The jobs that are still queued or running: id, state and reason, a line each; the tasks of an array share one."""
    return ["squeue", "--noheader", "--format=%A %T %r", f"--jobs={','.join(ids)}"]


def doctor_argv(site: SiteConfig) -> list[str]:
    """`srun` for the doctor: a few minutes on the nodes that training would get."""
    resources = site.resources("train")
    options = [
        f"--{name}={getattr(resources, name)}"
        for name in ("partition", "account", "qos")
        if getattr(resources, name) is not None
    ]
    if resources.gpus_per_node:
        options.append(f"--gpus-per-node={resources.gpus_per_node}")
    return ["srun", "--export=ALL", "--time=5", *options, *resources.extra]
