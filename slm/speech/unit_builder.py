"""What a process of a unit job does: recordings are decoded ahead, batched by length, and extracted."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from slm.artifact import write_atomic
from slm.config.units import Hearing, UnitsJob
from slm.errors import DataError, MachineError
from slm.parts import Part, Plan, Report
from slm.speech.audio import SAMPLE_RATE, check_heard
from slm.speech.load import load_extractor
from slm.speech.unit_records import Skipped, UnitCounts, UnitRecord, check_skipped
from slm.speech.unit_sources import Recording, open_recordings

if TYPE_CHECKING:
    from slm.speech.extractor import Extractor

STEM = "units-"
WINDOW_BATCHES = 8
"""Recordings are sorted by length within so many batches' worth of audio: more pad less, and hold more in memory."""
AHEAD = 4
"""Recordings that a reading thread may be ahead."""

T = TypeVar("T")
Heard = tuple[Recording, np.ndarray | DataError]
"""A recording and its wave, or why it has none."""


class UnitBuilder:
    """Builds parts of one unit set, one after another.

    Args:
        job: what is built.
        plan: its parts.
        folder: where files go.
        device: of this process.
    """

    def __init__(self, job: UnitsJob, plan: Plan, folder: Path, device: str) -> None:
        self.job, self.plan, self.folder, self.device = job, plan, folder, device
        self.source = open_recordings(job.source)

    @cached_property
    def extractor(self) -> Extractor:
        """Of the job's speech artifact."""
        return load_extractor(self.job.speech, self.device, self.job.dtype)[0]

    def build(self, part: Part, report: Report) -> UnitRecord:
        """Extract a part's units and write them.

        Raises:
            DataError: this part alone loses more recordings than the whole set may; or the extractor's units are
                outside its codebook.
            MachineError: no space left; no memory on the GPU.
            StopBuilding: from `report`.
        """
        counts, lines = UnitCounts(), list[str]()
        recordings = (each for span in part.spans for each in self.source.read(span.piece, span.start, span.stop))
        heard = hear_ahead(recordings, self.job.hearing, self.job.readers)
        extractor = self.extractor
        with one_thread():
            for window in one_ahead(windows(heard, self.job.batch_s * WINDOW_BATCHES)):
                for (recording, wave), found in zip(window, self._extract(extractor, window, report), strict=True):
                    counts.recordings += 1
                    if isinstance(found, DataError):
                        counts.skipped.append(Skipped(recording.id, found.what))
                        continue
                    assert isinstance(wave, np.ndarray)
                    counts.milliseconds += round(1000 * len(wave) / SAMPLE_RATE)
                    counts.units += len(found)
                    row = {"id": recording.id, "units": found.tolist(), "seconds": round(len(wave) / SAMPLE_RATE, 3)}
                    lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if self.plan.examples is not None:
            check_skipped(
                counts, of=self.plan.examples, at_most=self.job.hearing.skipped_at_most, where=self.job.out
            )  # fmt: skip
        data = "".join(lines).encode()
        name = f"{STEM}{part.number:06d}.jsonl" if lines else ""
        if name:
            write_atomic(self.folder / name, data)
        return UnitRecord(part.number, counts, name, len(data), hashlib.sha256(data).hexdigest())

    def _extract(self, extractor: Extractor, window: Sequence[Heard], report: Report) -> list[np.ndarray | DataError]:
        """The units of each recording of a window, or why it has none."""
        found = [wave if isinstance(wave, DataError) else DataError("not extracted") for _, wave in window]
        answers: list[np.ndarray | DataError] = list(found)
        waves = {place: wave for place, (_, wave) in enumerate(window) if isinstance(wave, np.ndarray)}
        report(len(window) - len(waves), 0)
        for batch in batches({place: len(wave) for place, wave in waves.items()}, self.job.batch_s):
            each = [waves[place] for place in batch]
            for place, units in zip(batch, self._units(extractor, each, window[batch[0]][0].where), strict=True):
                answers[place] = units
            report(len(batch), sum(round(1000 * len(wave) / SAMPLE_RATE) for wave in each))
        return answers

    def _units(self, extractor: Extractor, waves: list[np.ndarray], where: str) -> list[np.ndarray | DataError]:
        """Units of waves; when they can't be had together, of each alone."""
        try:
            found = extractor.units(waves)
        except DataError as error:
            return [error] if len(waves) == 1 else [self._units(extractor, [wave], where)[0] for wave in waves]
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's own, which need not be installed
                raise
            longest = max(map(len, waves)) / SAMPLE_RATE
            raise MachineError(
                f"no memory on {self.device} for {len(waves)} recordings of up to {longest:.0f} s",
                where=where,
                mend=f"a smaller batch_s than {self.job.batch_s:g}, or another device",
            ) from None
        short = DataError("audio is too short: it gives no unit", where=where)
        return [check_units(units, extractor.count, where) if len(units) else short for units in found]


def check_units(units: np.ndarray, count: int, where: str) -> np.ndarray:
    """Units as they are, if they are units of a codebook.

    Raises:
        MachineError: one is outside it: no recording's fault, and no set may hold it.
    """
    if units.min() < 0 or units.max() >= count:
        raise MachineError(
            f"the extractor gave units {units.min()}..{units.max()}, its codebook has {count}",
            where=where,
            mend="the speech artifact's files do not belong together, or its extractor is at fault",
        )
    return units


def hear_ahead(recordings: Iterator[Recording], hearing: Hearing, readers: int) -> Iterator[Heard]:
    """Decode recordings in threads, in order; what a codec does holds no lock of Python's."""
    with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
        waiting: deque[tuple[Recording, Future[np.ndarray | DataError]]] = deque()
        for recording in recordings:
            waiting.append((recording, pool.submit(hear, recording, hearing)))
            if len(waiting) >= AHEAD * readers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def hear(recording: Recording, hearing: Hearing) -> np.ndarray | DataError:
    """A recording's wave, float32 [samples] at 16 kHz, or why the job does not hear it."""
    try:
        wave = recording.wave(hearing.shortest_s, hearing.longest_s)
        if hearing.silent == "skip":
            check_heard(wave, where=recording.where)
    except DataError as error:
        return error
    return wave


def windows(heard: Iterator[Heard], seconds: float) -> Iterator[list[Heard]]:
    """Runs of recordings that hold `seconds` of audio, the last one of each included."""
    window: list[Heard] = []
    samples = 0
    for recording, wave in heard:
        window.append((recording, wave))
        samples += len(wave) if isinstance(wave, np.ndarray) else 0
        if samples >= seconds * SAMPLE_RATE:
            yield window
            window, samples = [], 0
    if window:
        yield window


def batches(lengths: dict[int, int], seconds: float) -> Iterator[list[int]]:
    """Places sorted by length and cut into batches of at most `seconds`, padding to the longest included.

    Args:
        lengths: place -> samples.
        seconds: of a batch; one wave that is longer is a batch by itself.
    """
    batch: list[int] = []
    for place in sorted(lengths, key=lambda place: (-lengths[place], place)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > seconds * SAMPLE_RATE:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, the next one being made in a thread while one is used."""
    nothing = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        future = pool.submit(next, items, nothing)
        while (item := future.result()) is not nothing:
            future = pool.submit(next, items, nothing)
            yield item  # type: ignore[misc]


@contextmanager
def one_thread() -> Iterator[None]:
    """On a CPU torch computes in one thread here: the processes are the parallelism, and sums have one order."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0
    if torch is not None:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(before)
