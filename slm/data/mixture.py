"""Which source the n-th row of a run comes from: exact ratios in every block, found without history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from slm.data.seeded import BLOCKS, permutation
from slm.errors import ConfigError

LARGEST_DENOMINATOR = 10_000
TOLERANCE = 0.01


def integer_weights(ratios: Sequence[float], measured: Sequence[bool] = ()) -> list[int]:
    """The smallest integers in the given proportion: `[1, 0.05]` -> `[20, 1]`.

    Ratios are taken as the nearest fraction with a denominator of at most 10 000. Those that are
    `measured` (rows that hold so many samples on average) are met to 1 %, by the smallest common
    denominator that does it: nobody is helped by a block of a million rows.

    Raises:
        ConfigError: a ratio that is not above zero.
    """
    if not ratios or not all(ratio > 0 and math.isfinite(ratio) for ratio in ratios):
        raise ConfigError(f"ratios of sources are above zero, not {list(ratios)}")
    measured = list(measured) or [False] * len(ratios)
    fractions = [Fraction(ratio).limit_denominator(LARGEST_DENOMINATOR) for ratio in ratios]
    if not all(fractions):
        raise ConfigError(f"a ratio below 1/{LARGEST_DENOMINATOR} can't be kept exactly: {list(ratios)}")
    exact = math.lcm(*(f.denominator for f, loose in zip(fractions, measured, strict=True) if not loose))
    common = exact
    while not all(
        abs(round(ratio * common) / (ratio * common) - 1) <= TOLERANCE
        for ratio, loose in zip(ratios, measured, strict=True)
        if loose
    ):
        common += exact
    weights = [round(fraction * common) for fraction in fractions]
    divisor = math.gcd(*weights)
    return [weight // divisor for weight in weights]


class Mixture:
    """Rows of several sources in seeded blocks.

    A block holds `weights[s]` rows of each source s, in an order of its own. With lanes, global row g is
    in lane g mod lanes, every lane has blocks of its own, and the j-th row of a source in a lane is its
    row j · lanes + lane: so lanes never look at each other, and ratios are exact in every lanes · block rows.
    The n-th row of the run and the k-th of a source determine each other.
    """

    def __init__(self, weights: Sequence[int], seed: int, lanes: int = 1) -> None:
        self.weights = list(weights)
        self.seed = seed
        self.lanes = lanes
        self.block = sum(weights)
        self._members = np.repeat(np.arange(len(weights)), weights)
        self._pattern = lru_cache(maxsize=16 + 2 * lanes)(self._make_pattern)

    def locate(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(source, row of that source) of each global row in [start, stop)."""
        return [self.locate_row(row) for row in range(start, stop)]

    def locate_row(self, row: int) -> tuple[int, int]:
        """(source, row of that source) of a global row."""
        if self.block == 1:
            return 0, row
        of_lane, lane = divmod(row, self.lanes)
        block, at = divmod(of_lane, self.block)
        sources, occurrences = self._pattern(block * self.lanes + lane)
        source = sources[at]
        return source, (block * self.weights[source] + occurrences[at]) * self.lanes + lane

    def counts(self, source: int, row: int) -> list[int]:
        """Rows of a source among the first `row` global rows, in each lane."""
        found = []
        for lane in range(self.lanes):
            block, at = divmod(max(0, -(-(row - lane) // self.lanes)), self.block)
            sources = self._pattern(block * self.lanes + lane)[0]
            found.append(block * self.weights[source] + sources[:at].count(source))
        return found

    def rows_holding(self, source: int, count: int) -> int:
        """Global rows that hold the first `count` rows of a source: whole blocks, then up to the last one needed."""
        weight = self.weights[source]
        block, rest = divmod(count, weight * self.lanes)
        most = block * self.block * self.lanes
        for lane in range(min(rest, self.lanes)):
            needed = -(-(rest - lane) // self.lanes)  # rows of the lane in the block under way
            sources, occurrences = self._pattern(block * self.lanes + lane)
            at = list(zip(sources, occurrences, strict=True)).index((source, needed - 1))
            most = max(most, (block * self.block + at) * self.lanes + lane + 1)
        return most

    def _make_pattern(self, block: int) -> tuple[list[int], list[int]]:
        """Source of each row of a block, and how many of that source came before it in the block."""
        if self.block == 1:
            return [0], [0]
        sources = self._members[permutation(self.block, BLOCKS, self.seed, block)]
        occurrences = np.empty(self.block, dtype=np.int64)
        for source, weight in enumerate(self.weights):
            occurrences[sources == source] = np.arange(weight)
        return sources.tolist(), occurrences.tolist()
