"""Praat TextGrids as text: the long form and the short one.

Praat itself reads both by one rule, and so does this file: what counts are quoted strings (`""`
inside is a quote), numbers and flags (`<exists>`) that stand free between spaces; everything else
(`xmin =`, `intervals [3]:`) and what follows `!` on a line is decoration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from slm.errors import DataError

_TOKEN = re.compile(r'"([^"]*(?:""[^"]*)*)"|!([^\n]*)|([^\s"]+)')
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_FLAG = re.compile(r"<\w+>")
INTERVALS, POINTS = "IntervalTier", "TextTier"


@dataclass(frozen=True)
class Interval:
    """A labelled stretch of time, in seconds."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Tier:
    """A named row of intervals. A point tier has a name and none: points say nothing about durations."""

    name: str
    kind: str
    intervals: tuple[Interval, ...]


class _Values:
    """The free-standing values of a file, handed out one by one with a check of their kind."""

    def __init__(self, text: str, where: str) -> None:
        self._values, self._where = _values(text), where

    def string(self, what: str) -> str:
        return self._next("text", what)

    def flag(self, what: str) -> str:
        return self._next("flag", what)

    def number(self, what: str) -> float:
        return float(self._next("number", what))

    def count(self, what: str) -> int:
        value = self.number(what)
        if not (value >= 0 and value.is_integer()):
            raise DataError(f"the TextGrid's {what} is {value:g}", where=self._where)
        return int(value)

    def _next(self, kind: str, what: str) -> str:
        found, value, line = next(self._values, ("end", "", 0))
        if found == "end":
            raise DataError(f"the TextGrid ends before its {what}", where=self._where, mend="copy the file again")
        if found != kind:
            raise DataError(f"the TextGrid's {what} is {value!r}, not a {kind}", where=f"{self._where}:{line}")
        return value


def _values(text: str) -> Iterator[tuple[str, str, int]]:
    """(kind, value, line) of everything that counts."""
    line, seen = 1, 0
    for match in _TOKEN.finditer(text):
        line, seen = line + text.count("\n", seen, match.start()), match.start()
        string, _, word = match.groups()
        if string is not None:
            yield "text", string.replace('""', '"'), line
        elif word is not None and _NUMBER.fullmatch(word):
            yield "number", word, line
        elif word is not None and _FLAG.fullmatch(word):
            yield "flag", word, line


def parse_textgrid(text: str, where: str) -> list[Tier]:
    """The tiers of a TextGrid, in the file's order.

    Args:
        text: the decoded file, long or short.
        where: names the file in errors.

    Raises:
        DataError: binary, another kind of Praat file, cut short, or a value of the wrong kind.
    """
    if text.startswith("ooBinaryFile"):
        raise DataError("a binary TextGrid", where=where, mend="in Praat: Save as text file")
    values = _Values(text, where)
    if values.string("file type") not in ("ooTextFile", "ooTextFile short"):
        raise DataError("no Praat text file: it does not begin with ooTextFile", where=where)
    kind = values.string("class")
    if kind != "TextGrid":
        raise DataError(f"a Praat {kind}, not a TextGrid", where=where)
    values.number("start")
    values.number("end")
    if values.flag("tiers? flag") != "<exists>":
        return []
    return [_tier(values, where) for _ in range(values.count("number of tiers"))]


def _tier(values: _Values, where: str) -> Tier:
    kind, name = values.string("tier class"), values.string("tier name")
    values.number("tier start")
    values.number("tier end")
    count = values.count(f"number of entries of tier {name!r}")
    if kind == POINTS:
        for _ in range(count):
            values.number("point"), values.string("mark")
        return Tier(name, kind, ())
    if kind != INTERVALS:
        raise DataError(f"tier {name!r} has the unknown class {kind!r}", where=where)
    intervals = []
    for number in range(1, count + 1):
        what = f"of interval {number} of tier {name!r}"
        start, end = values.number(f"start {what}"), values.number(f"end {what}")
        intervals.append(Interval(start, end, values.string(f"text {what}")))
    return Tier(name, kind, tuple(intervals))
