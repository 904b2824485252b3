"""Text and speech units in one stream: every word is followed by the units that speak it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from slm.errors import DataError
from slm.tokens.vocabulary import REPEATS, strip_units, text_to_units, units_to_text


@dataclass(frozen=True)
class Word:
    """A word and when it is spoken, in seconds from the start of the utterance."""

    text: str
    start_s: float
    end_s: float


def interleave_words(words: Sequence[Word], units: Sequence[int], rate_hz: float, repeats: str = "removed") -> str:
    """Weave an utterance: `the<|5|><|9|> capital<|3|>`.

    A word owns the units from its start to the start of the next one (a pause belongs to the word
    before it), the first word also what precedes it, the last all that follows. A run of one unit
    that crosses a boundary, with repeats removed, belongs to the word in which it begins. Every unit
    appears exactly once, in order.

    Args:
        words: in the order they are spoken.
        units: the utterance's units, **with** repeats: unit i lasts from i/rate_hz to (i+1)/rate_hz.
        rate_hz: units a second.
        repeats: `removed` or `kept` in what is returned.

    Raises:
        DataError: word times that run backwards, an empty word, or a word that holds a unit token.
    """
    if repeats not in REPEATS:
        raise DataError(f"repeats are 'kept' or 'removed', not {repeats!r}")
    _check(words)
    if not words:
        return units_to_text(_runs(units, repeats)[0])
    starts = [word.start_s for word in words[1:]]
    shares: list[list[int]] = [[] for _ in words]
    for unit, position in zip(*_runs(units, repeats), strict=True):
        shares[bisect_right(starts, (position + 0.5) / rate_hz)].append(unit)
    pieces = [word.text + units_to_text(share) for word, share in zip(words, shares, strict=True)]
    return " ".join(pieces)


def split_interleaved(text: str) -> tuple[str, list[int]]:
    """The inverse: (the text without units, the units in order)."""
    return strip_units(text), text_to_units(text)


def _runs(units: Sequence[int], repeats: str) -> tuple[list[int], list[int]]:
    """The units that are written, and the position in `units` at which each begins."""
    if repeats == "kept":
        return [int(u) for u in units], list(range(len(units)))
    kept: list[int] = []
    positions: list[int] = []
    position = 0
    for unit, run in groupby(units):
        kept.append(int(unit))
        positions.append(position)
        position += sum(1 for _ in run)
    return kept, positions


def _check(words: Sequence[Word]) -> None:
    for i, word in enumerate(words):
        if not word.text or word.text != word.text.strip() or text_to_units(word.text):
            raise DataError(f"word {i} is {word.text!r}: empty, padded with spaces, or holding a unit token")
        if word.end_s < word.start_s or (i and word.start_s < words[i - 1].start_s):
            raise DataError(f"the times of word {i} ({word.text!r}) run backwards", mend="sort the alignment by start")
