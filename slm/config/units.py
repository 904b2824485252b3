"""Configuration of jobs that turn recordings into speech units (`slm speech units`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from slm.config.base import Job, Strict
from slm.config.recordings import Recordings

UNITS = "units"
"""Kind of artifact: a unit set."""

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Precision = Literal["float32", "bfloat16", "float16"]


class Hearing(Strict):
    """Which recordings are heard at all; the others are skipped, counted and listed."""

    shortest_s: Annotated[float, Field(ge=0)] = 0.1
    """Shorter recordings are skipped."""
    longest_s: Seconds = 3600.0
    """Longer recordings are skipped, before they are decoded."""
    silent: Literal["skip", "keep"] = "skip"
    """Recordings whose peak stays under -80 dB of full scale."""
    skipped_at_most: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the recordings that may be skipped before it is an error."""

    @model_validator(mode="after")
    def _fits(self) -> Hearing:
        if self.shortest_s >= self.longest_s:
            raise ValueError(f"shortest_s {self.shortest_s:g} is not below longest_s {self.longest_s:g}")
        return self


class UnitsJob(Job):
    """Extract the units of recordings: a unit set, which the source `units` of shard-building jobs reads."""

    kind: ClassVar[str] = UNITS
    ignored: ClassVar[tuple[str, ...]] = ("job", "speech", "extractor", "source", "workers", "readers", "device")

    job: Literal["units"] = "units"
    """Which job this file configures."""
    speech: str
    """Speech artifact whose extractor makes the units."""
    extractor: str | None = None
    """Extractor that the artifact must name, `seamless` for the original package; null takes the artifact's own."""
    source: Recordings
    """Where recordings come from."""
    hearing: Hearing = Hearing()
    """Which of them are heard."""
    device: Device = "auto"
    """Where the extractor runs; `auto` gives every process a GPU in turn, where there are any."""
    dtype: Precision = "float32"
    """Precision of the extractor's network; bfloat16 is several times as fast on a GPU, and moves some units."""
    # Part of the identity: rounding in another batch may move a unit that lies between two centroids.
    batch_s: Seconds = 160.0
    """Seconds of audio, padding included, that the extractor gets at a time; a longer recording comes alone."""
    part: Positive = 1024
    """Recordings of a part. A part is one file, is built by one process, and is what a killed job keeps."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processes side by side; null is one per GPU, or else one per processor. Changes no byte."""
    readers: Annotated[int, Field(ge=1, le=64)] = 4
    """Threads of a process that read and decode ahead of the extractor. Changes no byte."""

    def inputs(self) -> dict[str, str]:
        """The speech artifact."""
        return {"speech": self.speech}

    def fingerprints(self) -> dict[str, str]:
        """The speech artifact, and the recordings by names and sizes."""
        return super().fingerprints() | {"source": self.source.fingerprint()}

    def identity(self) -> dict[str, Any]:
        """The settings that change bytes."""
        hearing = self.hearing.model_dump(mode="json", exclude={"skipped_at_most"})
        return super().identity() | {"source": self.source.identity(), "hearing": hearing}
