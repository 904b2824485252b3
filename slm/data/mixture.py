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


def integer_weights(ratios: Sequence[float]) -> list[int]:
    """The smallest integers in the given proportion: `[1, 0.05]` -> `[20, 1]`.

    Ratios are taken as the nearest fraction with a denominator of at most 10 000.

    Raises:
        ConfigError: a ratio that is not above zero.
    """
    if not ratios or not all(ratio > 0 and math.isfinite(ratio) for ratio in ratios):
        raise ConfigError(f"ratios of sources are above zero, not {list(ratios)}")
    fractions = [Fraction(ratio).limit_denominator(LARGEST_DENOMINATOR) for ratio in ratios]
    if not all(fractions):
        raise ConfigError(f"a ratio below 1/{LARGEST_DENOMINATOR} can't be kept exactly: {list(ratios)}")
    common = math.lcm(*(fraction.denominator for fraction in fractions))
    weights = [int(fraction * common) for fraction in fractions]
    divisor = math.gcd(*weights)
    return [weight // divisor for weight in weights]


class Mixture:
    """Rows of several sources in seeded blocks.

    A block holds `weights[s]` rows of each source s, in an order of its own. Rows of one source are
    numbered in the order they come, so the n-th row of the run and the k-th of a source determine
    each other.
    """

    def __init__(self, weights: Sequence[int], seed: int) -> None:
        self.weights = list(weights)
        self.seed = seed
        self.block = sum(weights)
        self._members = np.repeat(np.arange(len(weights)), weights)
        self._pattern = lru_cache(maxsize=64)(self._make_pattern)

    def locate(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(source, row of that source) of each global row in [start, stop)."""
        found = []
        for row in range(start, stop):
            block, at = divmod(row, self.block)
            sources, occurrences = self._pattern(block)
            source = sources[at]
            found.append((source, block * self.weights[source] + occurrences[at]))
        return found

    def count(self, source: int, row: int) -> int:
        """Rows of a source among the first `row` global rows."""
        block, at = divmod(row, self.block)
        return block * self.weights[source] + self._pattern(block)[0][:at].count(source)

    def rows_holding(self, source: int, count: int) -> int:
        """Global rows that hold `count` rows of a source: whole blocks, then up to the last one needed."""
        block, rest = divmod(count, self.weights[source])
        if not rest:
            return block * self.block
        sources, occurrences = self._pattern(block)
        wanted = (source, rest - 1)
        return block * self.block + list(zip(sources, occurrences, strict=True)).index(wanted) + 1

    def _make_pattern(self, block: int) -> tuple[list[int], list[int]]:
        """Source of each row of a block, and how many of that source came before it in the block."""
        if self.block == 1:
            return [0], [0]
        sources = self._members[permutation(self.block, BLOCKS, self.seed, block)]
        occurrences = np.empty(self.block, dtype=np.int64)
        for source, weight in enumerate(self.weights):
            occurrences[sources == source] = np.arange(weight)
        return sources.tolist(), occurrences.tolist()
