"""Answers as a data set: Parquet with an audio column, a card, what was skipped; continued when it was killed.

Parts are written into `.<out>.partial` one after the other, each with the questions of a chunk; the
artifact appears whole when the last one is there.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifact import building, digest, is_current, read_json, write_atomic, write_json, write_manifest
from slm.config.generation import GenerateJob
from slm.errors import DataError, from_os_error
from slm.generation.answers import Answer, Decoding, Refused, Speaker
from slm.generation.card import card
from slm.generation.questions import Task
from slm.generation.sources import Asked, Source
from slm.speech.audio import SAMPLE_RATE

PROGRESS, SKIPPED, CARD = "progress.json", "skipped.jsonl", "README.md"
log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What of a job is done.

    Attributes:
        job: digest of what is made; a partial folder of another is discarded.
        parts: files written.
        asked: questions gone through.
        tokens, spoken_s: said so far.
        skipped: {id, number, why} of what could not be asked.
    """

    job: str
    parts: int = 0
    asked: int = 0
    tokens: int = 0
    spoken_s: float = 0.0
    seconds: float = 0.0
    skipped: list[dict[str, Any]] = field(default_factory=list)


def decoding_of(job: Any) -> Decoding:
    """How a job's answers are decoded."""
    from slm.generation.generate import Sampling

    sampling = Sampling(job.temperature, job.top_p, job.seed)
    return Decoding(job.max_new_tokens, job.batch_size, sampling, job.constrained)


def answer_all(job: GenerateJob, source: Source, model: str, open_model: Callable[[], Speaker]) -> bool:
    """Make the data set `job.out`.

    Args:
        source: of the job.
        model: the model's fingerprint.
        open_model: loads the model, when it is needed.

    Returns:
        False when it was up to date already.

    Raises:
        DataError: not one question could be asked.
        MachineError: no space or no permission; what is done so far stands.
    """
    identity = {**job.identity(), "task": source.task}
    inputs = {"model": model, "questions": source.digest}
    current, why = is_current(job.out, job.kind, identity, inputs, format=job.format)
    log.info("%s: %s", job.out, "up to date" if current else why)
    if current:
        return False
    out = Path(job.out)
    partial = out.with_name(f".{out.name}.partial")
    progress = _resumed(partial, digest([identity, inputs, job.chunk]))
    speaker = open_model()
    try:
        _write_parts(job, source, speaker, partial, progress)
    except OSError as error:
        raise from_os_error(error, f"writing {partial}") from error
    if progress.asked == len(progress.skipped):
        first = progress.skipped[0]["why"] if progress.skipped else "there are none"
        raise DataError(f"no question could be asked: {first}", where=str(job.audio or job.data))
    about = {key: value for key, value in asdict(progress).items() if key not in ("job", "parts", "skipped")}
    about |= {"skipped": len(progress.skipped), "answers": progress.asked - len(progress.skipped)}
    with building(out) as folder:
        (folder / "data").mkdir()
        for part in range(progress.parts):
            shutil.copyfile(_part(partial, part), folder / "data" / f"train-{part:05d}-of-{progress.parts:05d}.parquet")
        write_atomic(folder / SKIPPED, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in progress.skipped))
        write_atomic(folder / CARD, card(job, source.task, about))
        write_manifest(folder, job.kind, config=identity, inputs=inputs, about=about, format=job.format)
    shutil.rmtree(partial, ignore_errors=True)
    if progress.skipped:
        log.warning("%d of %d questions skipped; %s says which", len(progress.skipped), progress.asked, out / SKIPPED)
    return True


def _resumed(partial: Path, job: str) -> Progress:
    """What a killed job of the same identity left, or a fresh start."""
    if (partial / PROGRESS).is_file():
        found = Progress(**read_json(partial / PROGRESS))
        if found.job == job:
            log.info("continuing behind question %d", found.asked)
            return found
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise from_os_error(error, f"making {partial}") from error
    return Progress(job)


def _part(partial: Path, number: int) -> Path:
    return partial / f"part-{number:05d}.parquet"


def _write_parts(job: GenerateJob, source: Source, speaker: Speaker, partial: Path, progress: Progress) -> None:
    decoding = decoding_of(job)
    questions = source.read(progress.asked)
    while True:
        left = job.chunk if job.limit is None else min(job.chunk, job.limit - progress.asked)
        began = time.monotonic()
        chunk = list(islice(questions, left))
        if not chunk:
            return
        answers, refused = _answered(source.task, chunk, speaker, decoding)
        if answers:
            spoken = _write_part(_part(partial, progress.parts), source.task, answers, speaker)
            progress.parts += 1
            progress.spoken_s = round(progress.spoken_s + spoken, 2)
        progress.asked += len(chunk)
        progress.tokens += sum(one.output.tokens for one in answers)
        progress.seconds = round(progress.seconds + time.monotonic() - began, 2)
        progress.skipped += [{"id": one.question.id, "number": one.question.number, "why": one.why} for one in refused]
        write_json(partial / PROGRESS, asdict(progress))
        log.info("%d questions, %d skipped", progress.asked, len(progress.skipped))


def _answered(
    task: Task, chunk: Sequence[Asked], speaker: Speaker, decoding: Decoding
) -> tuple[list[Answer], list[Refused]]:
    """Answers in the order of the questions, and what was refused."""
    heard = _hear(chunk, speaker)
    asked = [one for one in heard if not one.fault]
    found: list[Answer | Refused] = [Refused(one.question, one.fault) for one in heard if one.fault]
    found += speaker.answer(task, [one.question for one in asked], decoding)
    found.sort(key=lambda one: one.question.number)
    answers = [one for one in found if isinstance(one, Answer)]
    return answers, [one for one in found if isinstance(one, Refused)]


def _hear(chunk: Sequence[Asked], speaker: Speaker) -> list[Asked]:
    """Questions with their waves as units, or with a fault."""
    waves = [one.wave for one in chunk if one.wave is not None]
    if not waves:
        return list(chunk)
    units = iter(_units_of(waves, speaker))
    heard = []
    for one in chunk:
        if one.wave is None:
            heard.append(one)
            continue
        found = next(units)
        if isinstance(found, str):
            heard.append(Asked(one.question, fault=found))
        else:
            heard.append(Asked(replace(one.question, units=found)))
    return heard


def _units_of(waves: Sequence[np.ndarray], speaker: Speaker) -> list[list[int] | str]:
    """Units of every wave, or why there are none: one bad wave must not cost the others."""
    try:
        return list(speaker.hear(waves))
    except DataError:
        if speaker.extractor is None:
            raise
    found: list[list[int] | str] = []
    for wave in waves:
        try:
            found += speaker.hear([wave])
        except DataError as error:
            found.append(error.what)
    return found


def _features() -> Any:
    from datasets import Audio, Features, List, Value

    text = Value("string")
    return Features(
        {
            **dict.fromkeys(("id", "task", "prompt", "interleaved", "text", "transcript"), text),
            "units": List(Value("int32")),
            "audio": Audio(sampling_rate=SAMPLE_RATE),
            "finished": Value("bool"),
            "faults": List(text),
        }
    )


def _write_part(path: Path, task: Task, answers: Sequence[Answer], speaker: Speaker) -> float:
    """One Parquet file; returns how many seconds are spoken in it."""
    import pyarrow
    import pyarrow.parquet

    rows, seconds = [], 0.0
    for one in answers:
        wave = speaker.wave(one)
        seconds += len(wave) / SAMPLE_RATE
        rows.append(record(task, one, wave))
    table = pyarrow.Table.from_pylist(rows, schema=_features().arrow_schema)
    scratch = path.with_suffix(".tmp")
    pyarrow.parquet.write_table(table, scratch, row_group_size=128)
    os.replace(scratch, path)
    return seconds


def record(task: Task, answer: Answer, wave: np.ndarray) -> dict[str, Any]:
    """An answer as a row: see docs/generation.md for its columns."""
    audio: Mapping[str, Any] | None = None
    if len(wave):
        audio = {"bytes": wav_bytes(wave), "path": f"{answer.question.number:08d}.wav"}
    return {
        "id": answer.question.id,
        "task": task,
        "prompt": answer.prompt,
        "interleaved": answer.output.raw,
        "text": answer.text,
        "transcript": answer.transcript,
        "units": answer.units,
        "audio": audio,
        "finished": answer.output.finished,
        "faults": answer.faults,
    }


def wav_bytes(wave: np.ndarray) -> bytes:
    """A WAV file, mono PCM16, 16 kHz."""
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, np.clip(wave, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    return held.getvalue()
