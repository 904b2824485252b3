"""The commands of a pipeline's steps, as pure functions that return argv.

A command is what a person would type at the top of the checkout; `PORT` stands for a free port that
is chosen when the command is started.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

PYTHON = "python"
DEEPSPEED = "deepspeed"
PORT = "PORT"

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+-]*")
_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")


def override(key: str, value: Any) -> str:
    """`key=value` with the value in YAML, so that the command reads back what was meant."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Every `key=value` of a mapping, in its order."""
    return [override(key, value) for key, value in values.items()]


def data(job: str, values: Mapping[str, Any]) -> list[str]:
    """Build data."""
    return [PYTHON, "data_shards/build.py", job, *overrides(values)]


def tiny_base(values: Mapping[str, Any]) -> list[str]:
    """Make the tiny world's random-weight model."""
    return [PYTHON, "-m", "slm", "model", "tiny-base", *overrides(values)]


def train(config: str, overlays: Sequence[str], values: Mapping[str, Any], ranks: int) -> list[str]:
    """Train a stage on this machine's devices."""
    with_overlays = [part for overlay in overlays for part in ("--with", overlay)]
    launcher = [DEEPSPEED, "--num_gpus", str(ranks), "--master_port", PORT]
    return [*launcher, "launcher/train.py", "--config", config, *with_overlays, *overrides(values)]


def train_environment(ranks: int, cores: int, has_gpu: bool) -> dict[str, str]:
    """Variables a train step needs: on a CPU, DeepSpeed's accelerator, its device count, and threads per rank."""
    if has_gpu:
        return {}
    return {
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": str(ranks),  # the CPU accelerator's device count; otherwise it counts NUMA nodes
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
    }


def expand(values: Mapping[str, Any]) -> list[str]:
    """Grow a model's vocabulary."""
    return [PYTHON, "-m", "slm", "model", "expand", *overrides(values)]


def merge(recipe: str, out: str, models: Mapping[str, str], seed: int) -> list[str]:
    """Merge models by a mergekit recipe."""
    return [PYTHON, "-m", "slm", "merge", recipe, out, *overrides(models), "--seed", str(seed)]


def discount(values: Mapping[str, Any]) -> list[str]:
    """An adapter at a smaller scale."""
    return [PYTHON, "-m", "slm", "model", "discount", *overrides(values)]


def evaluate(config: str, values: Mapping[str, Any]) -> list[str]:
    """Evaluate checkpoints."""
    return [PYTHON, "-m", "slm.eval", config, *overrides(values)]


def report(run: str) -> list[str]:
    """Write the report of a run folder."""
    return [PYTHON, "-m", "slm", "report", run]


def shown(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command as a line for a shell."""
    variables = [f"{key}={shlex.quote(value)}" for key, value in (environment or {}).items()]
    return " ".join([*variables, shlex.join(argv)])
