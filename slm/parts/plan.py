"""How the rows of a job are cut into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slm.errors import DataError


@dataclass(frozen=True)
class Piece:
    """A file, data set or listing that can be read from any of its rows on.

    Attributes:
        name: for messages.
        rows: number of rows, None where nobody knows it without reading all of them.
    """

    name: str
    rows: int | None


@dataclass(frozen=True)
class Span:
    """Rows [start, stop) of a piece; `first` is the number of row `start` in the source. `stop` None is its end."""

    piece: int
    start: int
    stop: int | None
    first: int


@dataclass(frozen=True)
class Part:
    """Examples that are built together."""

    number: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Plan:
    """All parts of a set, and how many examples they hold (None: not known before they are read)."""

    parts: tuple[Part, ...]
    examples: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"examples": self.examples, "parts": [[list(asdict(s).values()) for s in p.spans] for p in self.parts]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        spans = [tuple(Span(*span) for span in part) for part in value["parts"]]
        return cls(tuple(Part(number, part) for number, part in enumerate(spans)), value["examples"])


def make_plan(pieces: Sequence[Piece], *, size: int, limit: int | None = None) -> Plan:
    """Cut pieces into parts of `size` examples; a piece of unknown length is a part by itself.

    Args:
        pieces: of the source.
        size: examples of a part.
        limit: examples in all at most.

    Raises:
        DataError: there is nothing to read.
    """
    parts: list[tuple[Span, ...]] = []
    spans: list[Span] = []
    room, first = size, 0
    for number, piece in enumerate(pieces):
        if piece.rows is None:
            if spans:
                parts.append(tuple(spans))
                spans, room = [], size
            parts.append((Span(number, 0, None, 0),))
            continue
        at = 0
        rows = piece.rows if limit is None else min(piece.rows, limit - first)
        while at < rows:
            stop = min(rows, at + room)
            spans.append(Span(number, at, stop, first))
            first, room, at = first + stop - at, room - (stop - at), stop
            if not room:
                parts.append(tuple(spans))
                spans, room = [], size
    if spans:
        parts.append(tuple(spans))
    if not parts:
        raise DataError(
            "the source holds no row", where=", ".join(piece.name for piece in pieces[:3]), mend="check path and split"
        )
    known = all(piece.rows is not None for piece in pieces)
    return Plan(tuple(Part(number, part) for number, part in enumerate(parts)), first if known else None)
