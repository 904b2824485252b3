"""What several commands share: the configs there are, and `key=value` arguments as a job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from slm.errors import ConfigError

if TYPE_CHECKING:
    from slm.config.base import Strict

Model = TypeVar("Model", bound="Strict")

ROOT = Path(__file__).resolve().parents[2]


def configs(*patterns: str) -> list[str]:
    """The checkout's files that fit, as one would type them from where one stands."""
    found = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    here = Path.cwd().resolve()
    return [str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in found]


def need(argument: str | None, usage: str, *patterns: str) -> str:
    """The argument, or else the usage with the files that it could be.

    Raises:
        ConfigError: no argument was given.
    """
    if argument is not None and not re.match(r"[\w.-]+=", argument):
        return argument
    known = "".join(f"\n  {path}" for path in configs(*patterns))
    raise ConfigError(f"usage: {usage}" + (f"\nthere are:{known}" if known else ""))


def job_from(cls: type[Model], pairs: Sequence[str], usage: str) -> Model:
    """A typed job from `key=value` arguments alone.

    Raises:
        ConfigError: none were given, or they don't fit; says which keys there are.
    """
    from slm.config.loader import from_overrides

    if not pairs:
        meanings = cls.meanings()
        keys = "\n".join(f"  {name:<20} {meanings.get(name, '')}" for name in cls.model_fields)
        raise ConfigError(f"usage: {usage}\nkeys:\n{keys}")
    return from_overrides(cls, pairs)
