"""Configuration of interleaving (how words and units share one stream) and of CTC forced alignment."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from slm.config.base import Strict

Share = Annotated[float, Field(ge=0, le=1)]


def _is_marker(text: str) -> str:
    if not re.fullmatch(r"<[^<>\[\]\s]+>|\[[^<>\[\]\s]+\]", text):
        raise ValueError(f"a marker is one word in <…> or […], not {text!r}")
    if re.fullmatch(r"<\|[0-9]+\|>", text):
        raise ValueError(f"{text} is a speech unit and can't be a marker")
    return text


Marker = Annotated[str, AfterValidator(_is_marker)]
"""A sign in the stream, as `<|continue|>` or `[Speech]`. It is one token only where the tokenizer has it as one."""


class _Aligned(Strict):
    """What schedules that follow the word times have in common."""

    pauses: Literal["before", "split"] = "before"
    """Whose units a pause's are: all belong to the word before it, or half to either neighbour."""


class WordsSchedule(_Aligned):
    """`count` words, then the units that speak them, and so on; with 1, word by word."""

    schedule: Literal["words"] = "words"
    """Names the schedule."""
    count: int = Field(default=1, ge=1)
    """Words before their units."""


class Ratio(Strict):
    """A chunk: so many text tokens, then so many units."""

    text: int = Field(ge=1)
    """Text tokens."""
    units: int = Field(ge=1)
    """Speech units."""


class TokensSchedule(Strict):
    """n text tokens, then m units, whatever the word times; the last chunk takes what is left of both."""

    schedule: Literal["tokens"]
    """Names the schedule."""
    ratios: Annotated[list[Ratio], Field(min_length=1)] = [Ratio(text=13, units=26)]
    """The chunks in order; the last one is used again and again."""


class PoissonSchedule(_Aligned):
    """Spans of words are spoken, the others written: every word is there once, as text or as units."""

    schedule: Literal["poisson"]
    """Names the schedule."""
    span_words: float = Field(default=10.0, gt=0, le=1000)
    """λ: mean of the Poisson distribution from which the words of a spoken span are drawn (one at least)."""
    speech_share: Share = 0.3
    """η: share of an utterance's words that are spoken, rounded up."""
    text_marker: Marker | None = None
    """Stands where text begins; null is nothing."""
    speech_marker: Marker | None = None
    """Stands where speech begins; null is nothing."""
    seed: int = Field(default=0, ge=0)
    """Decides the spans, together with the sample's key."""

    @model_validator(mode="after")
    def _distinct(self) -> PoissonSchedule:
        if self.text_marker is not None and self.text_marker == self.speech_marker:
            raise ValueError(f"text_marker and speech_marker are both {self.text_marker}")
        return self


class SegmentsSchedule(_Aligned):
    """Long segments, each written or spoken, some of them followed by the same in the other form."""

    schedule: Literal["segments"]
    """Names the schedule."""
    seconds: float = Field(default=10.0, gt=0)
    """Length of a segment, about; a shorter utterance is one segment."""
    text_share: Share = 0.5
    """Chance that a segment begins as text."""
    correspond_share: Share = 0.5
    """Chance that the segment follows again in the other form."""
    continue_marker: Marker | None = "<|continue|>"
    """Between two segments when the form changes; null is nothing."""
    correspond_marker: Marker = "<|correspond|>"
    """Between a segment and the same in the other form."""
    seed: int = Field(default=0, ge=0)
    """Decides borders and forms, together with the sample's key."""

    @model_validator(mode="after")
    def _distinct(self) -> SegmentsSchedule:
        if self.continue_marker == self.correspond_marker:
            raise ValueError(f"continue_marker and correspond_marker are both {self.correspond_marker}")
        return self


InterleaveConfig = Annotated[
    WordsSchedule | TokensSchedule | PoissonSchedule | SegmentsSchedule, Field(discriminator="schedule")
]
"""How words and units are woven; `schedule:` names the member."""


class CtcConfig(Strict):
    """Forced alignment of transcripts by a CTC model that hears the wave."""

    model: str
    """Folder or Hub name of a transformers CTC model that hears waves (wav2vec 2.0, HuBERT, WavLM, …), with its
    tokenizer and feature extractor."""
    device: str = "auto"
    """`auto` is the GPU if there is one; or `cpu`, `cuda`, `cuda:1`."""
    batch_seconds: float = Field(default=120.0, gt=0)
    """Audio that is aligned together, padding included."""
    min_confidence: Share = 0.0
    """Utterances whose mean word confidence lies below it are rejected."""
