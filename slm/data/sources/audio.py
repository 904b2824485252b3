"""Recordings and transcripts, through an extractor: LibriSpeech's own tree, or pairs of audio and text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from slm.config.shards import AudioSource, ShardsJob
from slm.data.sources.base import Example, Piece
from slm.data.sources.spoken import SpokenExamples, require_same_units
from slm.data.sources.transcripts import Utterance, read_utterances, recording
from slm.errors import DataError
from slm.speech.audio import read_audio
from slm.speech.load import load_extractor, read_units
from slm.tokens.schedules import Splitter
from slm.tokens.vocabulary import UnitSet

if TYPE_CHECKING:
    from slm.speech.extractor import Extractor


class AudioRows:
    """A `Source` of one piece: all utterances that have a transcript."""

    def __init__(self, job: ShardsJob, units: UnitSet | None, split: Splitter | None = None) -> None:
        assert isinstance(job.source, AudioSource) and units is not None
        self.source, self.units = job.source, units
        self.examples = SpokenExamples(job, units, split)

    @cached_property
    def extractor(self) -> Extractor:
        """Of the speech artifact.

        Raises:
            DataError: its units are not those of the job.
        """
        extractor, found = load_extractor(self.source.speech)
        self._require_units(found)
        return extractor

    def _require_units(self, found: UnitSet) -> None:
        require_same_units(self.units, found, f"speech artifact {self.source.speech}")

    @cached_property
    def utterances(self) -> list[Utterance]:
        """Every transcript, in order."""
        source = self.source
        return read_utterances(source.path, source.layout, source.subsets, source.case)

    def pieces(self) -> list[Piece]:
        """One listing; checks the speech artifact, so that a mismatch ends a build before it begins.

        Raises:
            DataError: its units are not those of the job.
        """
        self._require_units(read_units(self.source.speech))
        return [Piece(self.source.path, len(self.utterances))]

    def read(self, piece: int, start: int, stop: int | None, first: int) -> Iterator[Example | None]:
        """See `Source.read`."""
        chosen = self.utterances[start:stop]
        for at in range(0, len(chosen), self.source.batch):
            batch = chosen[at : at + self.source.batch]
            paths = [recording(utterance) for utterance in batch]
            waves = [read_audio(path)[0] for path in paths]
            try:
                units = self.extractor.units(waves)
            except DataError as error:
                raise DataError(error.what, where=f"audio source {paths[0]} and what follows it") from None
            for offset, (utterance, found) in enumerate(zip(batch, units, strict=True)):
                number = first + at + offset
                where = f"audio source {self.source.path} utterance {utterance.id}"
                yield self.examples.example(utterance.id, utterance.text, found, number, where)
