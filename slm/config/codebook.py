"""Configuration of codebooks: learning the units (`slm speech codebook fit`), and judging them (`… evaluate`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from slm.config.base import Job, Strict
from slm.config.recordings import HfRecordings, Recordings
from slm.config.speech import MelKMeansConfig, XlsrConfig
from slm.config.units import Device, Hearing, Positive, Precision

LARGEST_GREEDY = 1024
"""Units that k-means++ is taken for by default: its work grows with their square."""


class MelFeatures(MelKMeansConfig):
    """The offline features; `fit_frames` is the sample that scales them and tells how units sound and last."""

    kind: Literal["mel_kmeans"] = "mel_kmeans"
    """Which extractor."""


Features = Annotated[MelFeatures | XlsrConfig, Field(discriminator="kind")]


class CodebookJob(Job):
    """Learn units from recordings: mini-batch k-means over a stream, into a speech artifact."""

    kind: ClassVar[str] = "speech"
    ignored: ClassVar[tuple[str, ...]] = ("job", "source", "device", "readers", "save_every")

    job: Literal["codebook"] = "codebook"
    """Which job this file configures."""
    features: Features
    """What distances are taken of."""
    count: Annotated[int, Field(ge=2, le=65_536)]
    """Number of units."""
    source: Recordings
    """Where recordings come from."""
    hearing: Hearing = Hearing()
    """Which of them are heard."""
    batch: Positive = 64
    """Recordings of a step, from places all over the source."""
    epochs: Positive = 1
    """Passes over the source."""
    steps: Positive | None = None
    """Steps in all; null is what `epochs` gives."""
    init: Literal["k-means++", "random"] | None = None
    """How centroids begin: spread over the sample, or frames of it; null spreads up to 1,024 of them."""
    init_frames: Positive | None = None
    """Frames of the sample that centroids begin in; null is ten a unit, and `fit_frames` for mel features."""
    reassign: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Units with fewer frames than this share of the mean move to frames of a batch now and then; 0 leaves them."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the order of recordings, the sample, and where units move."""
    device: Device = "auto"
    """Where features and distances are computed."""
    dtype: Precision = "float32"
    """Precision of the network that makes the features."""
    save_every: Positive = 20
    """Steps between two saves, which a killed fit continues after. Changes no byte."""
    readers: Annotated[int, Field(ge=1, le=64)] = 4
    """Threads that read and decode ahead. Changes no byte."""

    @model_validator(mode="after")
    def _fits(self) -> CodebookJob:
        if isinstance(self.source, HfRecordings) and self.source.streaming:
            raise ValueError("a fit takes recordings from all over the source: streaming: false")
        if isinstance(self.features, MelFeatures):
            if "count" in self.features.model_fields_set:
                raise ValueError("features.count: the number of units is the job's count")
            if self.features.discriminants:
                raise ValueError("features.discriminants need word times, which recordings do not have; leave them out")
        return self

    @property
    def spread(self) -> bool:
        """Whether centroids begin by k-means++."""
        return self.init == "k-means++" if self.init is not None else self.count <= LARGEST_GREEDY

    @property
    def sample_frames(self) -> int:
        """Frames of the sample that centroids begin in."""
        if self.init_frames is not None:
            return max(self.init_frames, self.count)
        return max(10 * self.count, self.features.fit_frames if isinstance(self.features, MelFeatures) else 0)

    def inputs(self) -> dict[str, str]:
        """The network, where the features are one's."""
        return {"model": self.features.model} if isinstance(self.features, XlsrConfig) else {}

    def fingerprints(self) -> dict[str, str]:
        """The recordings by names and sizes, and the network by its content."""
        return super().fingerprints() | {"source": self.source.fingerprint()}

    def identity(self) -> dict[str, Any]:
        """The settings that change bytes."""
        hearing = self.hearing.model_dump(mode="json", exclude={"skipped_at_most"})
        features = self.features.model_dump(mode="json", exclude={"model"})
        return super().identity() | {"source": self.source.identity(), "hearing": hearing, "features": features}


class CodebookEvaluation(Strict):
    """Judge a codebook on recordings."""

    speech: str
    """Speech artifact."""
    source: Recordings
    """Where recordings come from; not those it was fitted on."""
    hearing: Hearing = Hearing()
    """Which of them are heard."""
    batch: Positive = 64
    """Recordings that the extractor gets at a time."""
    device: Device = "auto"
    """Where the extractor runs."""
    dtype: Precision = "float32"
    """Precision of the extractor's network."""
    readers: Annotated[int, Field(ge=1, le=64)] = 4
    """Threads that read and decode ahead."""
