"""The hostfile: one `NAME slots=N` a line, read more strictly than DeepSpeed reads it.

DeepSpeed 0.19.8 takes a missing file for "train on this machine alone", `n1: slots=8` for a host `n1:`, `slots=8abc`
for 8, and hands a host called `-oProxyCommand=…` to ssh as an option. Here each of these is an error with its line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm.errors import ConfigError

MAX_SLOTS = 1024
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_SLOTS = re.compile(r"slots=([0-9]+)")
FORM = "one host a line: NAME slots=N (user and port belong into ~/.ssh/config)"


@dataclass(frozen=True)
class Host:
    """A machine by the name that ssh knows, and how many ranks it takes."""

    name: str
    slots: int


def is_host_name(text: str) -> bool:
    """Whether `text` can be a host's name: letters, digits, `.`, `_`, `-`, nothing that a shell or ssh reads."""
    return _NAME.fullmatch(text) is not None


def read_hostfile(path: str | Path) -> tuple[Host, ...]:
    """The hosts of a file, in its order.

    Raises:
        ConfigError: the file is missing or unreadable, or lists every line that is wrong.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("hostfile not found", where=str(path), mend=f"write it: {FORM}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"hostfile can't be read: {error}", where=str(path)) from None
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, where: str = "hostfile") -> tuple[Host, ...]:
    """The hosts that `text` lists. Blank lines, comments (`#` to the end of the line) and CRLF are accepted.

    Args:
        where: the file, for messages.

    Raises:
        ConfigError: one line for every bad one (`where:3: …`), or no host at all.
    """
    hosts: dict[str, Host] = {}
    problems: list[str] = []
    lines: dict[str, int] = {}
    for number, raw in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        words = raw.partition("#")[0].strip(" \t").split()
        if not words:
            continue
        problem = _problem(words)
        known = words[0].lower()
        if not problem and known in lines:
            problem = f"host '{words[0]}' stands in line {lines[known]} already"
        if problem:
            problems.append(f"{where}:{number}: {problem}")
            continue
        lines[known] = number
        hosts[known] = Host(words[0], int(words[1].removeprefix("slots=")))
    if problems:
        raise ConfigError("\n".join(problems), mend=FORM)
    if not hosts:
        raise ConfigError("the hostfile names no host", where=where, mend=FORM)
    return tuple(hosts.values())


def _problem(words: list[str]) -> str:
    """What is wrong with a line's words; empty when nothing is."""
    name, *rest = words
    if name.startswith("-"):
        return f"host {name!r} would be an option to ssh"
    if name.endswith(":") and is_host_name(name[:-1]):
        return f"no colon after the name: '{name[:-1]} {' '.join(rest)}'".rstrip(" '") + "'"
    if not is_host_name(name):
        return f"{name!r} is no host name"
    if not rest:
        return f"host '{name}' has no slots=N"
    slots = _SLOTS.fullmatch(rest[0])
    if slots is None:
        return f"expected slots=N after the name, found {rest[0]!r}"
    if not 1 <= int(slots[1][:9]) <= MAX_SLOTS:
        return f"{rest[0]}: expected 1 to {MAX_SLOTS}"
    return f"unexpected {' '.join(rest[1:])!r} after {rest[0]}" if rest[1:] else ""


def check_launchers_hostfile() -> None:
    """Read the hostfile that the `deepspeed` above this process was given, where it started the ranks right here.

    That is where it has fallen back to this machine alone, because the file is missing, or names one host.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    for argv in _ancestors(os.getpid()):
        path = hostfile_argument(argv)
        if path is not None:
            read_hostfile(path)
            return


def hostfile_argument(argv: Sequence[str]) -> str | None:
    """The hostfile in a command line of DeepSpeed's launcher; None without one, and in any other command line."""
    names = [Path(word).name for word in argv[:3]]
    if "deepspeed" not in names:
        return None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word in ("--hostfile", "-H"):
            return following
        if word.startswith("--hostfile="):
            return word.partition("=")[2]
        if word.endswith(".py"):
            return None  # the script's own arguments begin
    return None


def _ancestors(pid: int, most: int = 4) -> Iterator[list[str]]:
    """Command lines of a process's parents, the nearest first; on other systems than Linux, none."""
    for _ in range(most):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            pid = int(status.partition("PPid:")[2].split(maxsplit=1)[0])
            yield Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except (OSError, ValueError, IndexError):
            return
