"""Random orders that are the same on every machine and with every numpy.

numpy promises the streams of its seed sequences and bit generators for ever, but not those of
`Generator.permutation`, so permutations here are the sorting order of raw PCG64 output.
"""

from __future__ import annotations

import numpy as np

GROUPS, SAMPLES, ROWS, BLOCKS, HELD_OUT = 1, 2, 3, 4, 5
"""What an order is of: keeps the streams of different uses apart."""


def permutation(size: int, use: int, seed: int, *where: int) -> np.ndarray:
    """A uniformly random order of 0..size-1 that depends on the arguments alone.

    Args:
        size: number of things.
        use: one of the constants above.
        seed: of the run, ≥ 0.
        where: source, epoch, window, block: whatever tells one order from another; each ≥ 0.

    Returns:
        int64, (size,).
    """
    # A trailing 1: seed sequences that differ only in trailing zeros would be equal.
    bits = np.random.PCG64(np.random.SeedSequence([use, seed, *where, 1])).random_raw(size)
    order = np.argsort(bits)
    ordered = bits[order]
    if (ordered[1:] == ordered[:-1]).any():  # once in 10^11 windows; the fast sort leaves their order open
        return np.argsort(bits, kind="stable")
    return order
