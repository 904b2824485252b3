"""Speech for scorers: units to a wave and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slm.generation.output import to_wave

if TYPE_CHECKING:
    from slm.speech.extractor import Extractor
    from slm.speech.vocoder import Vocoder
    from slm.tokens.vocabulary import UnitSet


@dataclass
class Voice:
    """Extractor, vocoder and unit set of a data folder; what was spoken once is not spoken again."""

    extractor: Extractor
    vocoder: Vocoder
    units: UnitSet
    _heard: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def wave(self, units: Sequence[int]) -> np.ndarray:
        """Output-role units as a wave, float32 at 16 kHz; empty without units."""
        return to_wave(units, self.vocoder)

    def heard(self, units: Sequence[int]) -> list[int]:
        """What the extractor hears when the vocoder speaks these units, as output-role units."""
        key = tuple(units)
        if key not in self._heard:
            wave = self.wave(units)
            found = self.extractor.units([wave])[0].tolist() if len(wave) else []
            self._heard[key] = self.units.for_role(found, "output")
        return self._heard[key]


@lru_cache(maxsize=2)
def load_voice(folder: str) -> Voice | None:
    """The voice of a data folder; None where it has no `speech/`. Kept, so that models share it."""
    from slm.speech import load_speech

    path = Path(folder) / "speech"
    return Voice(*load_speech(path)) if path.is_dir() else None
