"""The offline vocoder: each unit's mean spectrum, joined smoothly, with phases by Griffin-Lim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from slm.errors import DataError
from slm.speech.audio import SAMPLE_RATE
from slm.speech.mel_kmeans import POWER_FLOOR, MelKMeans

LOUDEST = 0.95
"""A wave whose peak would exceed this is turned down to it."""


@dataclass(frozen=True)
class CodebookVocoder:
    """Speaks the units of a `MelKMeans` codebook; implements `Vocoder`."""

    codebook: MelKMeans

    name = "codebook_mel"

    @classmethod
    def load(cls, folder: str | Path) -> CodebookVocoder:
        """Read the codebook of a speech artifact; see `MelKMeans.load`."""
        return cls(MelKMeans.load(folder))

    @cached_property
    def spectra(self) -> np.ndarray:
        """Log magnitude spectrum of each unit, float32 [count, window // 2 + 1]."""
        import librosa

        config = self.codebook.config
        bands = librosa.filters.mel(
            sr=SAMPLE_RATE, n_fft=config.window, n_mels=config.mel_bands, fmin=config.lowest_hz,
            fmax=config.highest_hz, norm=None,
        )  # fmt: skip
        weights = np.maximum(bands.sum(axis=1), 1e-6)
        bins = np.arange(bands.shape[1])
        centres = bands @ bins / weights
        # Each band's mean power per bin, joined by lines on the log scale: solving for the spectrum that has exactly
        # these bands (librosa's mel_to_stft) leaves most bins at zero, which is heard as a ringing.
        logs = np.log(np.maximum(np.exp(self.codebook.mel) - POWER_FLOOR, 0.0) / weights + POWER_FLOOR)
        return np.stack([np.interp(bins, centres, row) for row in logs]).astype(np.float32) / 2

    def wave(self, units: Sequence[int], durations: Sequence[float] | None = None) -> np.ndarray:
        """See `Vocoder.wave`; the same units always give the same wave."""
        import librosa

        config = self.codebook.config
        periods = self._periods(np.asarray(units, dtype=np.int64), durations)
        if not len(periods):
            return np.zeros(0, np.float32)
        samples = len(periods) * config.hop
        length = max(samples, config.window)
        step = config.window // 4
        centres = (np.arange(len(periods)) + 0.5) * config.hop
        place = np.interp(np.arange(length // step + 1) * step, centres, np.arange(len(periods)))
        before = np.floor(place).astype(np.int64)
        after = np.minimum(before + 1, len(periods) - 1)
        share = (place - before)[:, None].astype(np.float32)
        logs = (1 - share) * self.spectra[periods[before]] + share * self.spectra[periods[after]]
        magnitude = np.maximum(np.exp(logs) - np.sqrt(POWER_FLOOR), 0.0) * (config.window / 4.0)
        wave = librosa.griffinlim(
            magnitude.T, n_iter=config.griffin_lim_steps, hop_length=step, n_fft=config.window, length=length,
            random_state=0,
        )  # fmt: skip
        wave = np.nan_to_num(wave[:samples]).astype(np.float32)
        return wave * min(1.0, LOUDEST / max(float(np.abs(wave).max()), 1e-9))

    def _periods(self, units: np.ndarray, durations: Sequence[float] | None) -> np.ndarray:
        """The unit of each period, int64 [periods]; fractions of a period carry over to the next unit."""
        count = self.codebook.count
        if units.ndim != 1 or (len(units) and not 0 <= units.min() <= units.max() < count):
            raise DataError(f"units must be numbers from 0 to {count - 1} in one row", where="vocoder")
        if durations is None:
            kept = self.codebook.config.output == "kept"
            lengths = np.ones(len(units)) if kept else self.codebook.durations[units].astype(np.float64)
        else:
            lengths = np.asarray(durations, dtype=np.float64)
        if lengths.shape != units.shape or not (np.isfinite(lengths) & (lengths >= 0)).all():
            raise DataError("durations must be one number >= 0 for each unit", where="vocoder")
        ends = np.floor(np.cumsum(lengths) + 0.5).astype(np.int64)
        return np.repeat(units, np.diff(ends, prepend=0))
