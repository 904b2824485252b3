"""Configurations of the extractors and vocoders, and of the jobs that make their folders."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from slm.artifact import file_sha256
from slm.config.base import Job, Strict
from slm.errors import DataError

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


class XlsrConfig(Strict):
    """Features of a wav2vec 2.0 network (XLS-R) after one of its layers; units are the nearest centroids."""

    kind: Literal["xlsr_kmeans"] = "xlsr_kmeans"
    """Which extractor."""
    model: str
    """Hugging Face folder of the network; `slm speech convert` makes one of a fairseq or fairseq2 checkpoint."""
    layer: int = Field(default=35, ge=1)
    """Features are the output of this layer, counted from 1; layers after it are never loaded."""
    chunk_s: float = Field(default=60.0, ge=1)
    """Seconds that the network sees at most at once; longer recordings are cut."""
    context_s: float = Field(default=4.0, ge=0)
    """Seconds that a piece of a cut recording sees of its neighbours on each side."""
    batch_s: float = Field(default=160.0, gt=0)
    """Seconds of audio, padding included, that go through the network together; changes no unit."""
    input: Literal["kept", "removed"] = "kept"
    """Repeats of a unit in questions."""
    output: Literal["kept", "removed"] = "removed"
    """Repeats of a unit in answers."""

    @model_validator(mode="after")
    def _fits(self) -> XlsrConfig:
        if 2 * self.context_s >= self.chunk_s:
            raise ValueError(f"context_s {self.context_s:g} on both sides leaves nothing of chunk_s {self.chunk_s:g}")
        return self


class SpeechConvertJob(Job):
    """Published checkpoints as a speech artifact: XLS-R and its codebook, the code HiFi-GAN, or one of them.

    What a checkpoint's tensors do not say (heads, strides, dilations) is a key here; the defaults are those of
    `xlsr2_1b_v2` and `vocoder_v2`.
    """

    kind: ClassVar[str] = "speech"
    ignored: ClassVar[tuple[str, ...]] = ("xlsr", "kmeans", "vocoder", "voices", "environment")

    extractor: Literal["xlsr_kmeans", "seamless"] = "xlsr_kmeans"
    """`xlsr_kmeans` converts; `seamless` runs the checkpoints by the original package, in an environment of its own."""
    xlsr: str | None = None
    """Checkpoint of the network (`xlsr2_1b_v2.pt`), named as fairseq or fairseq2 name it."""
    kmeans: str | None = None
    """Centroids (`kmeans_10k.npy`), float [units, width]; without them there is a network but no speech artifact."""
    vocoder: str | None = None
    """Checkpoint of the code HiFi-GAN (`vocoder_v2.pt`)."""
    voices: str | None = None
    """JSON file {language: [speaker, …]}, languages in the order of their numbers; null takes those of `vocoder_v2`
    where the checkpoint has room for as many."""
    environment: str | None = None
    """Folder that `slm speech env seamless` made; for `extractor: seamless` only."""
    layer: int = Field(default=35, ge=1)
    """Layer whose output the centroids were fitted on, counted from 1."""
    heads: int = Field(default=16, ge=1)
    """Attention heads of the network."""
    conv_stride: list[int] = [5, 2, 2, 2, 2, 2, 2]
    """Strides of the network's convolutions; their product is the samples of a unit."""
    chunk_s: float = Field(default=60.0, ge=1)
    """See `XlsrConfig.chunk_s`."""
    context_s: float = Field(default=4.0, ge=0)
    """See `XlsrConfig.context_s`."""
    upsample_rates: list[int] = [5, 4, 4, 2, 2]
    """Upsampling of the vocoder's blocks; their product is the samples of a unit."""
    resblock_dilations: list[list[int]] = [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    """Dilations of the vocoder's residual blocks."""
    input: Literal["kept", "removed"] = "kept"
    """Repeats of a unit in questions."""
    output: Literal["kept", "removed"] = "removed"
    """Repeats of a unit in answers: `removed` lets the vocoder predict how long each unit lasts."""

    @model_validator(mode="after")
    def _fits(self) -> SpeechConvertJob:
        if self.xlsr is None and self.vocoder is None:
            raise ValueError("nothing to convert: give xlsr, vocoder or both")
        if self.kmeans is not None and self.xlsr is None:
            raise ValueError("kmeans needs xlsr: centroids mean nothing without the network they were fitted on")
        if self.voices is not None and self.vocoder is None:
            raise ValueError("voices needs vocoder")
        if (self.extractor == "seamless") != (self.environment is not None):
            raise ValueError("environment and extractor: seamless go together")
        if self.extractor == "seamless" and self.kmeans is None:
            raise ValueError("extractor: seamless needs xlsr and kmeans")
        return self

    def sources(self) -> dict[str, str]:
        """Name -> file of everything that is read."""
        named = {"xlsr": self.xlsr, "kmeans": self.kmeans, "vocoder": self.vocoder, "voices": self.voices}
        return {name: path for name, path in named.items() if path is not None}

    def fingerprints(self) -> dict[str, str]:
        """Checkpoints are no artifacts; they count by their content.

        Raises:
            DataError: one is missing.
        """
        for name, path in self.sources().items():
            if not Path(path).is_file():
                raise DataError(
                    f"{name}: no such file",
                    where=path,
                    mend="download the checkpoint from its publisher; nothing is downloaded here",
                )
        return {name: file_sha256(path) for name, path in self.sources().items()}
