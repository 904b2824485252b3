"""Environment variables for all hosts, in a file that only its owner reads.

DeepSpeed 0.19.8 puts what it forwards on pdsh's command line, where everybody on the machine sees it (`ps`), and
prints it. So the pipeline writes one file of mode 0600 into the run folder; every rank and every batch script reads
it at its start.

The form is `KEY=value` a line, and a value means here what it means to a POSIX shell: bare words and quoted text.
What a shell would expand (`$`, backticks, a backslash outside single quotes) is refused, never taken literally.

`python -m slm.cluster.environment FILE` prints a file that is good as lines for a shell; the batch scripts read it so.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from slm.errors import ConfigError, from_os_error, run_entry

FILE = ".env"
"""Name in the run folder: hidden, so that it is no part of an artifact."""
PREFIXES = (
    *("HF_", "WANDB_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "UCX_", "MLFLOW_", "MV2_", "AWS_", "SLM_", "FI_"),
    "TRITON_",
)
"""Variables of the person's shell that go to all hosts."""
LAUNCHERS_FORWARD = ("NCCL", "UCX", "MLFLOW", "MV2")
"""What DeepSpeed's launcher would put on a command line by itself; taken out of its environment."""
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Each rank's own; in a file for all they would be wrong."""
_OWN = ("SLM_PIPELINE_TOKEN", "SLM_ENV_FILE")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"""(?:'[^']*'|"[^"$`\\!]*"|[A-Za-z0-9_@%+=:,./^-])*""")


def parse_environment(text: str, where: str) -> dict[str, str]:
    """The variables of a file's text. Blank lines, comments and `export` before a name are accepted.

    Raises:
        ConfigError: one line for every bad one; values are never shown.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for number, raw in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        line = raw.strip(" \t")
        if not line or line.startswith("#"):
            continue
        name, sign, value = re.sub(r"^export[ \t]+", "", line).partition("=")
        if not sign or not _NAME.fullmatch(name):
            problems.append(f"{where}:{number}: expected KEY=value")
        elif not _VALUE.fullmatch(value) or not value.isprintable():
            problems.append(f"{where}:{number}: {name}: put the value in single quotes; nothing is expanded in it")
        elif name in PLACE:
            problems.append(f"{where}:{number}: {name} is each rank's own")
        elif name in found:
            problems.append(f"{where}:{number}: {name} is set twice")
        else:
            found[name] = "".join(shlex.split(value))
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def render_environment(values: Mapping[str, str]) -> str:
    """The text that `parse_environment` and a POSIX shell read as these variables.

    Raises:
        ConfigError: a name that a shell can't have, a value with a line break or another control character.
    """
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of an environment variable")
        if not value.isprintable():
            raise ConfigError(f"the value of {name} has a line break or a control character", mend="unset it")
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(values.items()))


def read_environment(path: str | Path) -> dict[str, str]:
    """The variables of a file.

    Raises:
        ConfigError: missing, malformed, or readable by others than its owner.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"environment file can't be read: {reason}", where=str(path)) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError("environment file can be read by others", where=str(path), mend=f"chmod 600 {path}")
    return parse_environment(text, str(path))


def write_environment(path: str | Path, values: Mapping[str, str]) -> None:
    """Write the file whole, with mode 0600 from its first byte on.

    Raises:
        ConfigError: see `render_environment`.
        MachineError: no space or no permission.
    """
    text = render_environment(values)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error


def forwarded(environment: Mapping[str, str], prefixes: tuple[str, ...] = PREFIXES) -> dict[str, str]:
    """The variables of a shell that go to all hosts."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(prefixes) and name not in _OWN and not name.startswith("SLM_DEBUG")
    }


def without_forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for DeepSpeed's launcher: nothing left that it would show on a command line."""
    return {name: value for name, value in environment.items() if not name.startswith(LAUNCHERS_FORWARD)}


def adopt_environment(path: str | Path, environment: MutableMapping[str, str] | None = None) -> None:
    """Set the variables of a file; they prevail over what the host's login shell set.

    Raises:
        ConfigError: see `read_environment`.
    """
    (os.environ if environment is None else environment).update(read_environment(path))


def main(argv: list[str]) -> int:
    """The command line of the batch scripts."""
    if len(argv) != 1:
        raise ConfigError("usage: python -m slm.cluster.environment FILE")
    sys.stdout.write(render_environment(read_environment(argv[0])))
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(lambda: main(sys.argv[1:])))
