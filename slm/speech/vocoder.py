"""What a vocoder is: units in, a wave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Vocoder(Protocol):
    """Turns units as the output role writes them into speech."""

    name: str

    def wave(self, units: Sequence[int], durations: Sequence[float] | None = None) -> np.ndarray:
        """Speak units.

        Args:
            units: as the output role of the unit set has them.
            durations: length of each unit in unit periods (1/rate_hz); None means the lengths the
                vocoder learned where repeats are removed, and one period each where they are kept.

        Returns:
            float32 [samples] at 16 kHz within [-1, 1]; empty for no units.

        Raises:
            DataError: a unit out of range, or durations that do not fit.
        """
        ...
