"""What an extractor is: waves in, units out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Extractor(Protocol):
    """Turns speech into discrete units.

    Attributes:
        name: key in `slm.speech.EXTRACTORS`.
        rate_hz: units a second; unit i covers the time from i/rate_hz to (i+1)/rate_hz.
        count: units are 0 … count-1.
        identity: hex sha256 of everything that decides which unit a sound becomes.
    """

    name: str
    rate_hz: float
    count: int
    identity: str

    def units(self, waves: Sequence[np.ndarray], rate: int = 16_000) -> list[np.ndarray]:
        """Units of each wave, int32 [units], repeats kept; a wave's units do not depend on the others.

        Args:
            waves: float32 [samples], mono.
            rate: their sample rate; anything but 16 kHz is refused.

        Raises:
            DataError: a wave is empty, not finite, not mono, or the rate is wrong.
        """
        ...
