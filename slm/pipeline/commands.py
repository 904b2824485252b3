"""The commands of a pipeline's steps, as pure functions that return argv.

A command is what a person would type at the top of the checkout; `PORT` stands for a free port that
is chosen when the command is started.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slm.errors import ConfigError

PYTHON = "python"
DEEPSPEED = "deepspeed"
PORT = "PORT"
SSH_ALIVE = "-oServerAliveInterval=5 -oServerAliveCountMax=3"
"""ssh ends when its host has not answered for fifteen seconds."""

Launch = Callable[[list[str], int], list[str]]
"""From a train script with its arguments, and the pipeline's ranks, to the command that starts them."""

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+-]*")
_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./+-"
_SAFE_JSON = _SAFE + '[]{}",:\\'
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


def import_text(values: Mapping[str, Any]) -> list[str]:
    """The text path of a Llama 3.2 Vision."""
    return [PYTHON, "-m", "slm", "model", "import", *overrides(values)]


def train(config: str, overlays: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """The script that trains a stage; a `Launch` starts its ranks."""
    with_overlays = [part for overlay in overlays for part in ("--with", overlay)]
    return ["launcher/train.py", "--config", config, *with_overlays, *overrides(values)]


def on_this_machine(script: list[str], ranks: int) -> list[str]:
    """Ranks on this machine's devices."""
    return [DEEPSPEED, "--num_gpus", str(ranks), "--master_port", PORT, *script]


def on_hosts(script: list[str], ranks: int, *, hostfile: str, master: str, env_file: str) -> list[str]:
    """A rank on each slot of the hostfile, through pdsh; variables come from `env_file`.

    pdsh hands the words to the hosts' shells unquoted, and DeepSpeed puts those with a space in double quotes, in
    which a shell expands: so each word is quoted once more here, and none may have a space. `--force_multi` because
    DeepSpeed takes a hostfile of one host for this machine.

    Raises:
        ConfigError: a file name with a space or a percent sign, which pdsh would change.
    """
    name, *arguments = script
    words = [name, "--env-file", env_file, *map(_through_pdsh, arguments)]
    for word in words:
        if " " in word or "%" in word or not word.isprintable():
            raise ConfigError(f"{word!r} can't go through pdsh", mend="choose a name without spaces and percent signs")
    launcher = [DEEPSPEED, "--hostfile", hostfile, "--force_multi", "--master_addr", master, "--master_port", PORT]
    return [*launcher, *map(shlex.quote, words)]


def in_a_batch_job(script: list[str], ranks: int) -> list[str]:
    """One rank: the batch script's `srun` starts as many as there are."""
    return [PYTHON, *script]


def _through_pdsh(word: str) -> str:
    """`key=value` with what pdsh or a shell would change written as JSON escapes; other words as they are."""
    key, sign, value = word.partition("=")
    if not sign or not (set(value) - set(_SAFE)):
        return word
    try:
        value = json.dumps(json.loads(value), separators=(",", ":"))
    except ValueError:
        value = json.dumps(value)
    return f"{key}=" + re.sub(rf"[^{re.escape(_SAFE_JSON)}]", lambda found: f"\\u{ord(found[0]):04x}", value)


def train_environment(ranks: int, cores: int, has_gpu: bool) -> dict[str, str]:
    """Variables a train step needs: on a CPU, DeepSpeed's accelerator, its device count, and threads per rank."""
    if has_gpu:
        return {}
    return {
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": str(ranks),  # the CPU accelerator's device count; otherwise it counts NUMA nodes
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
    }


def hosts_environment() -> dict[str, str]:
    """For DeepSpeed's launcher itself.

    It must not put a user's `.deepspeed_env` on pdsh's command line; and ssh must notice that a host is gone.
    """
    own = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    return {"DS_ENV_FILE": os.devnull, "PDSH_SSH_ARGS_APPEND": f"{own} {SSH_ALIVE}".strip()}


def cpu_environment() -> dict[str, str]:
    """Variables that keep a step on the CPUs of whatever host it runs on."""
    return {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


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
