"""An utterance as an example of asr or tts: its transcript, its units, and for tts when each word is said."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

from slm.config.listing import walk
from slm.config.shards import AudioSource, ShardsJob, UnitsSource
from slm.data.sources.base import Example
from slm.data.sources.columns import as_units, instruction
from slm.errors import DataError
from slm.tokens.alignment import Word, read_alignment, read_alignments
from slm.tokens.interleave import weave
from slm.tokens.schedules import Splitter
from slm.tokens.vocabulary import UnitSet


def require_same_units(declared: UnitSet, found: UnitSet, where: str) -> None:
    """The units of a job and those of its data must be the same ones.

    Raises:
        DataError: names every difference.
    """
    pairs = {name: (value, getattr(found, name)) for name, value in dataclasses.asdict(declared).items()}
    differs = ", ".join(f"{name}: the job says {a}, the data {b}" for name, (a, b) in pairs.items() if a != b)
    if differs:
        raise DataError(f"speech units differ ({differs})", where=where, mend="declare under units: what the data has")


class SpokenExamples:
    """Makes examples of utterances.

    Args:
        job: of recipe asr or tts.
        units: its unit set.
        split: cuts text into tokens, for schedules that count them.
    """

    def __init__(self, job: ShardsJob, units: UnitSet, split: Splitter | None = None) -> None:
        assert isinstance(job.source, AudioSource | UnitsSource)
        self.source, self.recipe, self.units, self.split = job.source, job.recipe, units, split

    @cached_property
    def alignments(self) -> Alignments:
        """The job's alignments."""
        assert self.source.alignments is not None
        return Alignments(self.source.alignments)

    def example(self, name: str, text: str, units: Any, row: int, where: str) -> Example:
        """The example of an utterance.

        Args:
            name: its id.
            text: its transcript.
            units: raw units, repeats kept, [units].
            row: number in the source, which chooses the wording.
            where: for messages.

        Raises:
            DataError: units out of range, or an alignment that is missing or does not fit.
        """
        raw = as_units(units)
        if raw is None:
            raise DataError("units are no plain list, expected a list of whole numbers", where=where)
        if raw.size and not (raw.min() >= 0 and raw.max() < self.units.count):
            raise DataError(
                f"units {raw.min()}..{raw.max()} are outside the {self.units.count} that the job declares", where=where
            )
        found: dict[str, Any] = {"instruction": instruction(self.recipe, row), "transcription": text}
        if self.recipe == "asr":
            return found | {"discrete_unit": self.units.for_role(raw.tolist(), "input")}
        return found | {"interleaf": self._woven(name, raw.tolist(), where)}

    def _woven(self, name: str, raw: list[int], where: str) -> str:
        """Words and units of an utterance in one stream, as the job's schedule has it."""
        words = self.alignments.words(name)
        if self.source.case == "lower":
            words = [Word(word.text.lower(), word.start_s, word.end_s) for word in words]
        try:
            return weave(
                words, raw, self.units.rate_hz, self.source.interleave, repeats=self.units.output, key=name,
                split=self.split,
            )  # fmt: skip
        except DataError as error:
            raise DataError(error.what, where=where, mend=error.mend) from None


class Alignments:
    """Word alignments of a folder, found by utterance id: a file of that name, or one that holds many utterances.

    Args:
        folder: with `.TextGrid`, `.ctm`, `.json` or `.jsonl` files at any depth.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._shared: dict[str, list[Word]] = {}
        many: list[Path] = []
        for path in walk(folder):
            if path.suffix.lower() in (".textgrid", ".json"):
                self._files[path.stem] = path
                self._files[path.relative_to(folder).with_suffix("").as_posix()] = path
            elif path.suffix.lower() in (".ctm", ".jsonl"):
                many.append(path)
        for path in many:
            self._shared.update(read_alignments(path))

    def words(self, name: str) -> list[Word]:
        """The words of an utterance.

        Raises:
            DataError: it has no alignment, or one that can't be used.
        """
        if name in self._shared:
            return self._shared[name]
        if name not in self._files:
            raise DataError(
                f"no alignment of utterance {name!r}",
                where=self.folder,
                mend=f"put {name}.TextGrid, .json or a .ctm or .jsonl with this id there",
            )
        return read_alignment(self._files[name])
