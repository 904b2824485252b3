"""The site file: what this cluster's SLURM wants to be told (`ds_configs/sites/*.yaml`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from slm.config.base import Strict

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,-]{0,127}$")]
Time = Annotated[str, Field(pattern=r"^(\d{1,5}|\d{1,4}:\d\d|\d{1,4}:\d\d:\d\d|\d{1,3}-\d\d?(:\d\d(:\d\d)?)?)$")]
Count = Annotated[int, Field(gt=0)]
Option = Annotated[str, Field(pattern=r"^--[a-z][a-z-]*(=[A-Za-z0-9_.,:@/+*&|()\[\]=-]+)?$")]
Kind = Literal["train", "eval", "data", "other"]


class Resources(Strict):
    """What a job asks for; in `steps` only what differs from the top."""

    partition: Word | None = None
    """Partition, or several with commas; null is the cluster's own default."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service."""
    time: Time | None = None
    """Time limit as SLURM writes it, in quotes: "24:00:00", "2-12"."""
    nodes: Count | None = None
    """Nodes of a train step; other steps take one."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a node; a train step has one rank on each. 0: train on CPUs, `ranks` of the pipeline."""
    cpus_per_task: Count | None = None
    """Cores of each task."""
    extra: list[Option] = []
    """More options of sbatch, one a line: --constraint=h100."""

    @field_validator("time", mode="before")
    @classmethod
    def _time_is_text(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError('write the time in quotes, "24:00:00": YAML reads it as a number otherwise')
        return value

    @field_validator("extra")
    @classmethod
    def _no_line_of_ours(cls, value: list[str]) -> list[str]:
        taken = {"job-name", "output", "error", "dependency", "array", "signal", "requeue", "no-requeue", "wrap"}
        for option in value:
            if option[2:].partition("=")[0] in taken:
                raise ValueError(f"{option.partition('=')[0]} is set by the pipeline")
        return value


class SiteConfig(Resources):
    """A cluster: the same for every pipeline that runs there."""

    steps: dict[Kind, Resources] = {}
    """What steps of a kind ask for instead: train, eval, data, other."""
    setup: list[Annotated[str, Field(pattern=r"^[^\n\r\x00]*$")]] = []
    """Shell lines before each step: module load cuda."""
    env_file: str | None = None
    """File of KEY=value lines, mode 0600: variables for every step, secrets among them."""
    forward: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = []
    """Names of further variables of your shell that go to all hosts."""
    signal_s: Annotated[int, Field(ge=30, le=3600)] = 180
    """Seconds before the time limit at which a step is asked to save; longer than its longest optimizer step."""
    max_requeues: Annotated[int, Field(ge=0)] = 50
    """How often a job that was preempted or met its time limit goes back into the queue."""

    def resources(self, kind: Kind) -> Resources:
        """What a step of the kind asks for."""
        own = {field: getattr(self, field) for field in Resources.model_fields}
        special = self.steps.get(kind)
        given = special.model_dump(exclude_unset=True) if special is not None else {}
        return Resources(**{**own, **given})
