"""What a scorer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from slm.errors import DataError
from slm.eval.metrics import Ratio
from slm.eval.sets import Item
from slm.eval.voice import Voice
from slm.generation.output import Output


@dataclass
class Scored:
    """One item's ratios by metric name, and what else was noticed about its output."""

    ratios: dict[str, Ratio]
    flags: list[str] = field(default_factory=list)


class Scorer(Protocol):
    """The rules of one kind of task.

    Attributes:
        stage: the training stage at which the task counts as learned.
        headline: metric that stands for the task in a matrix.
        errors: metrics of which less is better.
        speech: whether the model needs speech units.
    """

    stage: str
    headline: str
    errors: frozenset[str]
    speech: bool

    def score(self, items: Sequence[Item], outputs: Sequence[Output], voice: Voice | None) -> list[Scored]:
        """Score every item.

        Raises:
            DataError: a target lacks what the rules read.
        """
        ...

    def spoken(self, output: Output) -> list[int]:
        """The units of the answer that is to be heard; empty where none belongs."""
        ...


def target(item: Item, key: str) -> Any:
    """A field of an item's target.

    Raises:
        DataError: it is missing.
    """
    if key not in item.target:
        raise DataError(f"the target has no {key!r}", where=f"evaluation item {item.id}")
    return item.target[key]


def common_flags(output: Output, *, text_only: bool) -> list[str]:
    """`unfinished` (cut at the limit), `empty`, and `units_in_text` where only text belongs."""
    flags = [] if output.finished else ["unfinished"]
    if not output.raw.strip():
        flags.append("empty")
    if text_only and output.units:
        flags.append("units_in_text")
    return flags
