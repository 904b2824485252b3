"""Configuration of the offline extractor and vocoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from slm.config.base import Strict

SAMPLE_RATE = 16_000


class MelKMeansConfig(Strict):
    """Log-mel or cepstral features, k-means units, and the codebook vocoder that speaks them."""

    count: int = Field(default=128, ge=2, le=65_536)
    """Number of units."""
    rate_hz: float = Field(default=25.0, gt=0, le=400)
    """Units a second; 16,000 must be a multiple of it."""
    mel_bands: int = Field(default=40, ge=8, le=256)
    """Mel bands of a frame."""
    lowest_hz: float = Field(default=60.0, ge=0)
    """Lower end of the mel bands."""
    highest_hz: float = Field(default=7600.0, gt=0, le=8000)
    """Upper end of the mel bands."""
    window: int = Field(default=1024, ge=128, le=8192)
    """Samples of the analysis window (16 kHz); at least one unit period."""
    cepstra: int = Field(default=13, ge=0)
    """Cepstral coefficients (cosine transform of the bands) that k-means sees; 0 takes the bands themselves."""
    stack: int = Field(default=1, ge=0, le=8)
    """Neighbour frames joined to a frame on each side."""
    normalise: Literal["none", "mean", "mean_variance"] = "mean"
    """What is evened out per utterance and band: nothing, its mean, or its mean and deviation."""
    discriminants: int = Field(default=0, ge=0)
    """Directions that best tell labelled frames apart (linear discriminant analysis), in which distances are
    taken; 0 takes the features as they are. Needs labels when fitting: the words of the training utterances."""
    fit_frames: int = Field(default=60_000, ge=100)
    """Frames that k-means sees at most, chosen at random."""
    fit_tries: int = Field(default=2, ge=1, le=20)
    """Starts of k-means of which the best is kept."""
    griffin_lim_steps: int = Field(default=32, ge=1, le=500)
    """Iterations of the vocoder's phase reconstruction."""
    input: Literal["kept", "removed"] = "kept"
    """Repeats of a unit in questions."""
    output: Literal["kept", "removed"] = "removed"
    """Repeats of a unit in answers."""
    seed: int = Field(default=0, ge=0)
    """Decides the frames and the starts of k-means."""

    @model_validator(mode="after")
    def _fits(self) -> MelKMeansConfig:
        if SAMPLE_RATE % self.rate_hz:
            raise ValueError(f"rate_hz {self.rate_hz:g} does not divide {SAMPLE_RATE}")
        if self.cepstra > self.mel_bands:
            raise ValueError(f"{self.cepstra} cepstra can't be had from {self.mel_bands} mel_bands")
        if self.discriminants > self.width:
            raise ValueError(f"{self.discriminants} discriminants can't be had from {self.width} features")
        if self.window < self.hop:
            raise ValueError(f"window {self.window} is shorter than a unit period, {self.hop} samples")
        return self

    @property
    def width(self) -> int:
        """Features of a frame with its neighbours."""
        return (self.cepstra or self.mel_bands) * (2 * self.stack + 1)

    @property
    def dimensions(self) -> int:
        """Dimensions of the space in which distances are taken."""
        return self.discriminants or self.width

    @property
    def hop(self) -> int:
        """Samples of one unit period."""
        return int(SAMPLE_RATE / self.rate_hz)
