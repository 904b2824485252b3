"""Text and speech units in one stream: woven by a schedule, and taken apart again.

`weave` = `pieces` (what the schedule decides) + `render` (how it is written). The plain schedule
writes every word and then the units that speak it; docs/interleaving.md draws them all.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from slm.config.interleave import InterleaveConfig, PoissonSchedule, SegmentsSchedule, TokensSchedule, WordsSchedule
from slm.errors import DataError
from slm.tokens.alignment import Word, check_words
from slm.tokens.schedules import Piece, Side, Splitter, Spoken, by_segments, by_spans, by_tokens, by_words
from slm.tokens.vocabulary import REPEATS, strip_units, text_to_units, units_to_text

WORD_BY_WORD = WordsSchedule()
"""Every word is followed by the units that speak it."""


def weave(
    words: Sequence[Word],
    units: Sequence[int],
    rate_hz: float,
    config: InterleaveConfig,
    *,
    repeats: str,
    key: str,
    split: Splitter | None = None,
) -> str:
    """Weave an utterance: `the<|5|><|9|> capital<|3|>` word by word.

    Args:
        words: in the order they are spoken.
        units: the utterance's units, **with** repeats: unit i lasts from i/rate_hz to (i+1)/rate_hz.
        rate_hz: units a second.
        config: the schedule. One that draws depends on its seed and `key` alone.
        repeats: `removed` or `kept` in what is returned.
        key: names the sample, e.g. its id; the same words under another key are cut elsewhere.
        split: cuts text into tokens (`token_splitter`); the `tokens` schedule needs it.

    Raises:
        DataError: what `pieces` refuses.
        ConfigError: the `tokens` schedule without `split`.
    """
    return render(pieces(words, units, rate_hz, config, repeats=repeats, key=key, split=split), config)


def unweave(text: str, config: InterleaveConfig = WORD_BY_WORD) -> tuple[str, list[int]]:
    """The inverse of `weave`: (the written text without units and markers, the written units in order).

    With the `words` and `tokens` schedules these are all words and all units; `poisson` and
    `segments` leave the text of spoken words and the units of written ones out.
    """
    signs = markers_of(config).all()
    if signs:
        text = re.sub("|".join(map(re.escape, signs)), "", text)
    # Text after leading units begins with the space that parts it from the unwritten words before it.
    return strip_units(text).removeprefix(" "), text_to_units(text)


def pieces(
    words: Sequence[Word],
    units: Sequence[int],
    rate_hz: float,
    config: InterleaveConfig,
    *,
    repeats: str,
    key: str,
    split: Splitter | None = None,
) -> list[Piece]:
    """What `weave` writes, before it is written; arguments as there.

    A word owns the units from its start to the start of the next one; with `pauses: split` a border
    lies in the middle of the pause between two words. The first word also owns what precedes it, the
    last all that follows. A run of one unit that crosses a border, with repeats removed, belongs to
    the word in which it begins. The pieces hold every word and every unit exactly once, in order.

    Raises:
        DataError: what `check_words` refuses; a word that holds one of the schedule's markers; no
            unit, a negative one, or fewer units than words; an unknown policy for repeats.
    """
    if repeats not in REPEATS:
        raise DataError(f"repeats are 'kept' or 'removed', not {repeats!r}")
    if rate_hz <= 0:
        raise DataError(f"{rate_hz} units a second")
    check_words(words, seconds=len(units) / rate_hz, where=key)
    if len(words) > len(units):
        raise DataError(
            f"{len(words)} words but {len(units)} units", where=key, mend="give units with repeats, at their true rate"
        )
    if min(units) < 0:
        raise DataError(f"unit {min(units)} is negative", where=key)
    _refuse_markers(words, config, key)
    if isinstance(config, TokensSchedule):
        return by_tokens(" ".join(word.text for word in words), _runs(units, repeats)[0], config, split)
    spoken = _shares(words, units, rate_hz, repeats, config.pauses)
    if isinstance(config, WordsSchedule):
        return by_words(spoken, config)
    if isinstance(config, PoissonSchedule):
        return by_spans(spoken, config, key)
    return by_segments(spoken, len(units), rate_hz, config, key)


@dataclass(frozen=True)
class Markers:
    """What a schedule writes between pieces; an empty one is nothing.

    Attributes:
        text, units: where the stream changes to text, or to units.
        opening: whether one stands before the first piece, too.
        again: between the two sides of one piece.
    """

    text: str = ""
    units: str = ""
    opening: bool = False
    again: str = ""

    def all(self) -> list[str]:
        """Those that are something."""
        return [sign for sign in (self.text, self.units, self.again) if sign]


def markers_of(config: InterleaveConfig) -> Markers:
    """The markers of a schedule."""
    if isinstance(config, PoissonSchedule):
        return Markers(config.text_marker or "", config.speech_marker or "", opening=True)
    if isinstance(config, SegmentsSchedule):
        change = config.continue_marker or ""
        return Markers(change, change, again=config.correspond_marker)
    return Markers()


def render(pieces: Sequence[Piece], config: InterleaveConfig) -> str:
    """Write pieces, with the schedule's markers."""
    markers = markers_of(config)
    written: list[str] = []
    last: Side | None = None
    for piece in pieces:
        for number, side in enumerate(piece.sides):
            if number:
                written.append(markers.again)
            elif side != last and (last or markers.opening):
                written.append(markers.text if side == "text" else markers.units)
            written.append(piece.text if side == "text" else units_to_text(piece.units))
            last = side
    return "".join(written)


def _refuse_markers(words: Sequence[Word], config: InterleaveConfig, key: str) -> None:
    signs = markers_of(config).all()
    for i, word in enumerate(words):
        held = [sign for sign in signs if sign in word.text]
        if held:
            raise DataError(
                f"word {i} ({word.text!r}) holds the marker {held[0]}", where=key, mend="choose another marker"
            )


def _shares(words: Sequence[Word], units: Sequence[int], rate_hz: float, repeats: str, pauses: str) -> list[Spoken]:
    """Every word with its units."""
    borders = [word.start_s for word in words[1:]]
    if pauses == "split":
        # Where two words overlap there is no pause to split.
        borders = [(min(a.end_s, b.start_s) + b.start_s) / 2 for a, b in pairwise(words)]
    shares: list[list[int]] = [[] for _ in words]
    for unit, position in zip(*_runs(units, repeats), strict=True):
        shares[bisect_right(borders, (position + 0.5) / rate_hz)].append(unit)
    return [
        Spoken(f" {word.text}" if i else word.text, tuple(share), word.start_s * rate_hz)
        for i, (word, share) in enumerate(zip(words, shares, strict=True))
    ]


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
