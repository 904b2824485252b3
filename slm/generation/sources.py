"""Where many questions come from: a folder of audio files, or a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slm.artifact import digest
from slm.config.generation import GenerateJob
from slm.config.listing import listing_digest, walk
from slm.errors import DataError, SlmError
from slm.generation.questions import HEARD, Question, Task, task_of
from slm.speech.audio import read_question

AUDIO_COLUMN, TEXT_COLUMN = "audio", "text"


@dataclass(frozen=True)
class Asked:
    """A question of a source, before its speech is heard.

    Attributes:
        question: with text or units, where the source has those.
        wave: float32 [samples] at 16 kHz, where it has speech; None otherwise.
        fault: why the question can't be asked; empty where it can.
    """

    question: Question
    wave: np.ndarray | None = None
    fault: str = ""


class Source(Protocol):
    """Questions in an order that never changes.

    Attributes:
        task: what is asked.
        digest: hex sha256 that changes with the questions.
    """

    task: Task
    digest: str

    def read(self, start: int) -> Iterator[Asked]:
        """Every question from number `start` on; unusable ones with their fault."""
        ...


def open_source(job: GenerateJob) -> Source:
    """The source that a job names.

    Raises:
        ConfigError: a task that takes the other kind of question.
        DataError: no such folder or data set, nothing in it, or no such column.
    """
    return AudioFolder(job) if job.audio is not None else DataSet(job)


class AudioFolder:
    """Every file below a folder, in the order of paths; what is no audio has a fault."""

    def __init__(self, job: GenerateJob) -> None:
        assert job.audio is not None
        self.root, self.instruction = Path(job.audio), job.instruction
        self.task = task_of(job.task, heard=True)
        self.files = walk(self.root)
        if not self.files:
            raise DataError("no files in the folder", where=str(self.root))
        self.digest = listing_digest(self.files, self.root)

    def read(self, start: int) -> Iterator[Asked]:
        """See `Source.read`; a file's id is its path in the folder, without suffix."""
        for number, path in enumerate(self.files[start:], start):
            name = str(path.relative_to(self.root))
            yield _heard(Question(name, number, instruction=self.instruction), path)


class DataSet:
    """A data set; its questions are audio, lists of units, or text. Audio is not decoded by its library."""

    def __init__(self, job: GenerateJob) -> None:
        assert job.data is not None
        self.path, self.instruction = job.data, job.instruction
        self.rows = _load(job)
        self.digest = digest({"fingerprint": self.rows._fingerprint, "rows": len(self.rows)})
        self.rows = _undecoded(self.rows)
        names = list(self.rows.column_names)
        usual = [AUDIO_COLUMN] * (job.task in (None, *HEARD)) + [TEXT_COLUMN] * (job.task not in HEARD)
        wanted = [job.column] if job.column is not None else usual
        column = next((name for name in wanted if name in names), None)
        if column is None:
            raise DataError(
                f"no column {' or '.join(wanted)}; there are: {', '.join(names)}",
                where=self.path,
                mend="name the column with the questions by --column",
            )
        self.column, self.has_id, self.has_wording = column, "id" in names, "instruction" in names
        feature = self.rows.features[column]
        is_string = getattr(feature, "dtype", "") in ("string", "large_string")
        # A task that hears may be given its audio by path; every other string is a text.
        self.kind = "audio" if _is_audio(feature) else "units"
        if is_string:
            self.kind = "path" if job.task in HEARD else "text"
        self.task = task_of(job.task, heard=self.kind != "text")

    def read(self, start: int) -> Iterator[Asked]:
        """See `Source.read`."""
        for number in range(start, len(self.rows)):
            row = self.rows[number]
            name = str(row["id"]) if self.has_id else str(number)
            wording = str(row["instruction"] or "") if self.has_wording else ""
            question = Question(name, number, instruction=self.instruction or wording)
            yield self._asked(question, row[self.column])

    def _asked(self, question: Question, value: Any) -> Asked:
        if value is None:
            return Asked(question, fault=f"column {self.column!r} is empty")
        if self.kind == "audio":
            return _heard(question, value)
        if self.kind == "path":
            return _heard(question, _beside(self.path) / value)
        if self.kind == "text":
            return Asked(replace(question, text=value))
        units = np.asarray(value)
        if units.ndim != 1 or units.dtype.kind not in "iu":
            return Asked(question, fault=f"column {self.column!r} holds no list of units")
        return Asked(replace(question, units=units.tolist()))


def _beside(data: str) -> Path:
    """What paths in a data set are relative to: its folder, or the file's."""
    path = Path(data)
    return path if path.is_dir() else path.parent


def _heard(question: Question, audio: Path | Mapping[str, Any]) -> Asked:
    """The wave of a file, or of {"bytes": …, "path": …} as data sets hold audio; or what is wrong with it."""
    try:
        if isinstance(audio, Path):
            return Asked(question, read_question(audio))
        if audio.get("bytes") is None:
            return Asked(question, read_question(str(audio.get("path"))))
        return Asked(question, read_question(audio["bytes"], where=str(audio.get("path") or "")))
    except SlmError as error:
        return Asked(question, fault=error.what)


def _is_audio(feature: Any) -> bool:
    import datasets

    is_struct = isinstance(feature, dict) and set(feature) >= {"bytes", "path"}
    return isinstance(feature, datasets.Audio) or is_struct


def _load(job: GenerateJob) -> Any:
    """The rows of the job's data set.

    Raises:
        DataError: it can't be loaded.
    """
    import datasets

    assert job.data is not None
    datasets.disable_progress_bars()
    path = Path(job.data)
    try:
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            rows = datasets.load_from_disk(job.data)
            rows = rows[job.split] if isinstance(rows, datasets.DatasetDict) else rows
        elif path.is_file():
            suffix = path.suffix.lstrip(".")
            kind = {"jsonl": "json", "txt": "text"}.get(suffix, suffix)
            rows = datasets.load_dataset(kind, data_files=job.data, split="train")
        else:
            rows = datasets.load_dataset(job.data, name=job.name, split=job.split)
    except Exception as error:  # of the library, of the Hub's client, or of what that uses for the network
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the data set can't be loaded: {told}", where=job.data,
            mend="check data, name and split; private sets on the Hub need HF_TOKEN in the environment",
        ) from error  # fmt: skip
    if not len(rows):
        raise DataError("the data set has no rows", where=job.data)
    return rows


def _undecoded(rows: Any) -> Any:
    """The rows with audio as bytes and path: decoding is ours, and needs no further library."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Audio):
            rows = rows.cast_column(name, datasets.Audio(decode=False))
    return rows
