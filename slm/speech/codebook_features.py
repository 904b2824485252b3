"""What codebooks are fitted on: features without a codebook, which write a speech artifact once they have one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slm.config.codebook import Features, MelFeatures
from slm.config.speech import MelKMeansConfig
from slm.errors import DataError
from slm.speech.audio import SAMPLE_RATE
from slm.speech.mel_kmeans import MelKMeans, features, log_mels, nearest, projection_of, unit_sounds


class CodebookFeatures(Protocol):
    """Frames of waves, in the space in which the nearest centroid is taken."""

    @property
    def rate_hz(self) -> float:
        """Frames a second."""
        ...

    @property
    def width(self) -> int:
        """Dimensions of a frame."""
        ...

    def features(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> list[np.ndarray]:
        """Of each wave, float32 [frames, width]."""
        ...

    def save(self, folder: str | Path, centroids: np.ndarray) -> Any:
        """Write the files of a speech artifact; its extractor, which says what its units are."""
        ...


FEATURES = {
    "mel_kmeans": "slm.speech.codebook_features:FittedMel",
    "xlsr_kmeans": "slm.speech.xlsr:XlsrFeatures",
}
"""Kind -> `module:class` with a classmethod `open(config, device, dtype)`; imported only when named."""


def open_features(config: Features, device: str, dtype: str) -> CodebookFeatures:
    """The features that a job names, on a device.

    Raises:
        SlmError: what the class raises: no network there, a layer it has not, no such device.
    """
    module, _, name = FEATURES[config.kind].partition(":")
    opened: CodebookFeatures = getattr(importlib.import_module(module), name).open(config, device, dtype)
    return opened


class FittedMel:
    """Log-mel or cepstral features, scaled by a sample; the sample also tells how each unit sounds and lasts.

    Args:
        config: its `count` is the number of centroids that `save` is given.
    """

    def __init__(self, config: MelFeatures) -> None:
        self.config = MelKMeansConfig(**config.model_dump(exclude={"kind", "count"}))
        self._logs: list[np.ndarray] = []
        self._projection: np.ndarray | None = None

    @classmethod
    def open(cls, config: MelFeatures, device: str = "cpu", dtype: str = "float32") -> FittedMel:
        """They are computed on the CPU in float32, whatever is asked for."""
        return cls(config)

    @property
    def rate_hz(self) -> float:
        """Frames a second."""
        return self.config.rate_hz

    @property
    def width(self) -> int:
        """Dimensions of a frame."""
        return self.config.dimensions

    def prepare(self, waves: Sequence[np.ndarray]) -> None:
        """Take a sample's waves; comes before everything else."""
        self._logs = log_mels(waves, self.config)
        self._projection = projection_of(
            np.concatenate([features(log, self.config) for log in self._logs]), self.config
        )

    def features(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> list[np.ndarray]:
        """See `CodebookFeatures.features`."""
        return [self._frames(log) for log in log_mels(waves, self.config, rate)]

    def save(self, folder: str | Path, centroids: np.ndarray) -> MelKMeans:
        """See `CodebookFeatures.save`.

        Raises:
            DataError: centroids of another width.
        """
        if centroids.ndim != 2 or centroids.shape[1] != self.width:
            raise DataError(
                f"centroids have shape {centroids.shape}, features are {self.width} wide", where=str(folder)
            )
        config = self.config.model_copy(update={"count": len(centroids)})
        points = np.asarray(centroids, np.float32)
        mel, durations, _ = unit_sounds(self._logs, [nearest(self._frames(log), points) for log in self._logs], config)
        assert self._projection is not None
        sounds = mel.astype(np.float32), durations.astype(np.float32)
        codebook = MelKMeans(config, self._projection, points, *sounds)
        codebook.save(folder)
        return codebook

    def _frames(self, log: np.ndarray) -> np.ndarray:
        assert self._projection is not None, "prepare() comes first"
        return features(log, self.config) @ self._projection
