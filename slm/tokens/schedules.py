"""Schedules: how an utterance is cut into pieces, and which side of a piece is written when.

A schedule turns words, each with the units that speak it, into `Piece`s. Every word and every unit
is in exactly one piece, in order; a piece whose sides are text alone leaves its units out of the
stream, one whose sides are units alone leaves its text out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from slm.config.interleave import PoissonSchedule, SegmentsSchedule, TokensSchedule, WordsSchedule
from slm.errors import ConfigError, DataError
from slm.tokens.draws import Draws

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Side = Literal["text", "units"]
TEXT: tuple[Side, ...] = ("text",)
UNITS: tuple[Side, ...] = ("units",)
BOTH: tuple[Side, ...] = ("text", "units")
Splitter = Callable[[str], Sequence[str]]
"""Cuts a text where its tokens end; the pieces join to the text again."""


@dataclass(frozen=True)
class Piece:
    """A stretch of an utterance.

    Attributes:
        text: its words; all but the utterance's first begin with a space, so that texts of pieces just join.
        units: the units that speak them, as they are written.
        sides: which of the two are written, in this order.
    """

    text: str
    units: tuple[int, ...]
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class Spoken:
    """A word with its space before it, the units that speak it, and where it begins, counted in raw units."""

    text: str
    units: tuple[int, ...]
    start: float


def joined(words: Sequence[Spoken], sides: tuple[Side, ...]) -> Piece:
    """Words as one piece; one without units is text, whatever `sides` says."""
    units = tuple(unit for word in words for unit in word.units)
    return Piece("".join(word.text for word in words), units, sides if units else TEXT)


def by_words(words: Sequence[Spoken], config: WordsSchedule) -> list[Piece]:
    """`count` words and their units in turn. Words that have none wait for the next that has, the last for nobody."""
    groups: list[list[Spoken]] = []
    full = True
    for word in words:
        if full:
            groups.append([])
        groups[-1].append(word)
        full = len(groups[-1]) >= config.count and any(w.units for w in groups[-1])
    if len(groups) > 1 and not any(word.units for word in groups[-1]):
        last = groups.pop()
        groups[-1] += last
    return [joined(group, BOTH) for group in groups]


def by_tokens(text: str, units: Sequence[int], config: TokensSchedule, split: Splitter | None) -> list[Piece]:
    """n text tokens, m units; as many chunks as both can fill, the last takes the rest of both.

    Raises:
        ConfigError: no splitter.
        DataError: the splitter loses text.
    """
    if split is None:
        raise ConfigError("schedule 'tokens' counts text tokens and needs a tokenizer to cut them")
    tokens = list(split(text))
    if "".join(tokens) != text:
        raise DataError(f"the tokenizer does not cut {text[:40]!r} into its tokens: they join to another text")
    cuts = [(0, 0)]
    while True:
        ratio = config.ratios[min(len(cuts), len(config.ratios)) - 1]
        cut = (cuts[-1][0] + ratio.text, cuts[-1][1] + ratio.units)
        if cut[0] >= len(tokens) or cut[1] >= len(units):
            break
        cuts.append(cut)
    ends = [*cuts[1:], (len(tokens), len(units))]
    return [Piece("".join(tokens[a:c]), tuple(units[b:d]), BOTH) for (a, b), (c, d) in zip(cuts, ends, strict=True)]


def by_spans(words: Sequence[Spoken], config: PoissonSchedule, key: str) -> list[Piece]:
    """Spans of words as units, the others as text."""
    is_spoken = poisson_spans(len(words), config.span_words, config.speech_share, Draws(config.seed, key))
    pieces = []
    for spoken, run in groupby(zip(is_spoken, words, strict=True), key=lambda pair: pair[0]):
        pieces.append(joined([word for _, word in run], UNITS if spoken else TEXT))
    return pieces


def poisson_spans(count: int, mean: float, share: float, draws: Draws) -> list[bool]:
    """Which of `count` words are spoken: spans of Poisson length, at random places, a written word between two.

    Spans are placed until ceil(share · count) words are spoken, or no further one fits. A length is
    cut to what is still to be spoken and to the longest free stretch; the place is uniform over all
    places at which the span fits. (λ and η of GLM-4-Voice's and SlamKit's interleaving.)
    """
    spoken = [False] * count
    wanted = math.ceil(share * count)
    while (missing := wanted - sum(spoken)) > 0:
        # A span may begin at i if it and its two neighbours are free: room[i] is the longest that does.
        room = [0] * (count + 1)
        for i in reversed(range(count)):
            if not spoken[i] and (i + 1 == count or not spoken[i + 1]):
                room[i] = room[i + 1] + 1
        room = [0 if i and spoken[i - 1] else length for i, length in enumerate(room)]
        if not any(room):
            break
        length = min(max(draws.poisson(mean), 1), missing, max(room))
        places = [i for i, longest in enumerate(room) if longest >= length]
        start = places[draws.below(len(places))]
        spoken[start : start + length] = [True] * length
    return spoken


def by_segments(
    words: Sequence[Spoken], unit_count: int, rate_hz: float, config: SegmentsSchedule, key: str
) -> list[Piece]:
    """Segments as text or units, some of them in both forms (USDM's continue and correspond)."""
    draws = Draws(config.seed, key)
    borders = segment_borders(words, unit_count, rate_hz * config.seconds, draws)
    pieces = []
    for begin, end in zip([0, *borders], [*borders, len(words)], strict=True):
        as_text, both = draws.chance(config.text_share), draws.chance(config.correspond_share)
        sides = TEXT if as_text else UNITS
        if both:
            sides = BOTH if as_text else ("units", "text")
        pieces.append(joined(words[begin:end], sides))
    return pieces


def segment_borders(words: Sequence[Spoken], unit_count: int, segment_units: float, draws: Draws) -> list[int]:
    """Indices of the words with which a new segment begins, ascending, none of them 0.

    With S = ⌊N / segment_units⌋ + 1 segments of N units, border k is drawn from a normal distribution
    about k·N/S of deviation N/2S, cut at ±N/S, and moved to the nearest start of a word; two that
    fall on the same word are one.
    """
    segments = int(unit_count / segment_units) + 1
    borders = set()
    for k in range(1, segments):
        place = (k + draws.normal(2.0) / 2) * unit_count / segments
        borders.add(min(range(len(words)), key=lambda i: abs(words[i].start - place)))
    return sorted(borders - {0})


def token_splitter(tokenizer: PreTrainedTokenizerFast) -> Splitter:
    """Cuts a text where the tokenizer's tokens end; a character that takes several tokens counts as one.

    Raises:
        ConfigError: the tokenizer puts a space before text that follows a unit, so a word can't be cut.
    """
    if _ids(tokenizer, " a") == _ids(tokenizer, "a"):
        raise ConfigError(
            "this tokenizer puts a space before every text, so a word with units inside would fall apart",
            mend="use another schedule, or a tokenizer without add_prefix_space",
        )

    def split(text: str) -> list[str]:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        ends = sorted({end for _, end in offsets} | {len(text)} - {0})
        return [text[a:b] for a, b in zip([0, *ends], ends, strict=False) if a < b]

    return split


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
