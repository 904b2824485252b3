"""Units that were extracted elsewhere: lines of `{"id", "units"}` or one `.npy` an utterance, and transcripts.

A `units.json` beside them that describes the unit set (count, rate_hz, extractor, codebook, input, output) is compared
with the job's declaration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifact import read_json
from slm.config.listing import expand, walk
from slm.config.shards import ShardsJob, UnitsSource
from slm.data.sources.base import Example, Piece
from slm.data.sources.spoken import SpokenExamples, require_same_units
from slm.data.sources.transcripts import read_utterances
from slm.errors import DataError
from slm.tokens.schedules import Splitter
from slm.tokens.vocabulary import UnitSet

UNITS_FILE = "units.json"


class UnitsRows:
    """A `Source` in the order of the units: a piece is a file of lines, or the whole folder of arrays."""

    def __init__(self, job: ShardsJob, units: UnitSet | None, split: Splitter | None = None) -> None:
        assert isinstance(job.source, UnitsSource) and units is not None
        self.source, self.units = job.source, units
        self.examples = SpokenExamples(job, units, split)
        self.arrays: list[Path] = []
        self.files: list[Path] = []
        path = self.source.path
        if isinstance(path, str) and Path(path).is_dir():
            found = walk(path)
            self.files = [file for file in found if file.suffix == ".jsonl"]
            self.arrays = [] if self.files else [file for file in found if file.suffix == ".npy"]
            if not self.files and not self.arrays:
                raise DataError("no units (*.jsonl or ID.npy) here", where=path)
        else:
            self.files = expand(path)

    @cached_property
    def texts(self) -> dict[str, str]:
        """Transcript of every utterance."""
        source = self.source
        found = read_utterances(source.transcripts, source.layout, source.subsets, source.case)
        return {utterance.id: utterance.text for utterance in found}

    def pieces(self) -> list[Piece]:
        """Files and their lines; the folder and its arrays."""
        folder = (self.files or self.arrays)[0].parent
        if (folder / UNITS_FILE).is_file():
            described = folder / UNITS_FILE
            try:
                found = UnitSet(**read_json(described))
            except TypeError as error:
                raise DataError(f"not a description of speech units: {error}", where=str(described)) from None
            require_same_units(self.units, found, str(described))
        if self.arrays:
            return [Piece(str(self.source.path), len(self.arrays))]
        return [Piece(str(path), sum(1 for _ in open(path, "rb"))) for path in self.files]

    def read(self, piece: int, start: int, stop: int | None, first: int) -> Iterator[Example | None]:
        """See `Source.read`."""
        rows = self._arrays(start, stop) if self.arrays else self._lines(self.files[piece], start, stop)
        for number, (name, units, where) in enumerate(rows, first):
            if name not in self.texts:
                raise DataError(
                    f"no transcript of utterance {name!r}",
                    where=where,
                    mend=f"{self.source.transcripts} has {len(self.texts)} transcripts; check layout and subsets",
                )
            yield self.examples.example(name, self.texts[name], units, number, where)

    def _arrays(self, start: int, stop: int | None) -> Iterator[tuple[str, Any, str]]:
        for path in self.arrays[start:stop]:
            where = f"units source {path}"
            try:
                yield path.stem, np.load(path, allow_pickle=False), where
            except (ValueError, OSError, EOFError) as error:
                raise DataError(f"not a readable array: {error}", where=where) from None

    def _lines(self, path: Path, start: int, stop: int | None) -> Iterator[tuple[str, Any, str]]:
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                if stop is not None and number >= stop:
                    return
                if number < start:
                    continue
                where = f"units source {path} line {number + 1}"
                try:
                    row = json.loads(line)
                    yield row["id"], row["units"], where
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"expected an object with id and units: {error}", where=where) from None
