"""Random choices about one sample, the same on every machine and with every numpy.

They come from raw PCG64 output, which numpy promises never to change, and from integers and the
four IEEE operations; no library's sampler and no mathematical library takes part.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np

INTERLEAVING = 101
"""Keeps this stream apart from those of orders (small numbers in `slm.data.seeded`) under the same seed."""


class Draws:
    """A stream of choices that depends on a seed and a key alone."""

    def __init__(self, seed: int, key: str) -> None:
        entropy = np.frombuffer(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest(), dtype="<u4").tolist()
        self._bits = np.random.PCG64(np.random.SeedSequence([INTERLEAVING, seed, *entropy, 1]))

    def raw(self) -> int:
        """64 random bits."""
        return int(self._bits.random_raw())

    def below(self, count: int) -> int:
        """One of 0 … count-1, each as likely as the others to one in 2^64 / count."""
        return (self.raw() * count) >> 64

    def chance(self, probability: float) -> bool:
        """True with a probability; never for 0, always for 1."""
        return self.raw() < int(probability * 2**64)

    def poisson(self, mean: float) -> int:
        """From the Poisson distribution, by inversion of its distribution function."""
        return bisect_right(_poisson_steps(mean), self.raw())

    def normal(self, bound: float) -> float:
        """About standard normal, within ±bound: the sum of twelve uniforms less six, drawn again when outside."""
        while True:
            value = sum(self.raw() >> 11 for _ in range(12)) / 2**53 - 6.0
            if abs(value) <= bound:
                return value


@lru_cache(maxsize=16)
def _poisson_steps(mean: float) -> tuple[int, ...]:
    """P(X <= k) · 2^64 for k = 0, 1, …, until it is 1 to 64 bits; decimal numbers have the same digits everywhere."""
    with localcontext() as context:
        context.prec = 40
        term = (-Decimal(mean)).exp()
        total, steps, k = term, [int(term * 2**64)], 0
        while k < mean or term * 2**64 >= Decimal("0.01"):
            k += 1
            term = term * Decimal(mean) / k
            total += term
            steps.append(min(int(total * 2**64), 2**64))
    return tuple(steps)
