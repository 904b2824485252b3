"""Text to WAV files with word times, through espeak-ng programs running side by side.

This end of the pipe never loads the (GPL-3) library; `slm.tiny.espeak` does, as a child process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from slm.errors import DataError, MachineError
from slm.tokens.alignment import Word

PROGRAM = "slm.tiny.espeak"
BATCH = 64
"""Utterances spoken by one fork of the program."""
Job = tuple["Request", Path]


@dataclass(frozen=True, order=True)
class Request:
    """One utterance to speak: `rate` in words a minute (80–450), `pitch` 0–99 (50 is the voice's own)."""

    text: str
    voice: str
    rate: int
    pitch: int

    @property
    def speaker(self) -> tuple[str, int, int]:
        """Who speaks: voice, rate, pitch."""
        return self.voice, self.rate, self.pitch


@dataclass(frozen=True)
class Spoken:
    """A synthesised utterance: its word times and its length, in seconds."""

    words: tuple[Word, ...]
    seconds: float


def synthesise(jobs: Sequence[Job], *, workers: int = 1, on_done: Callable[[int], None] | None = None) -> list[Spoken]:
    """Speak every request into its WAV file (16 kHz, mono, PCM16).

    Equal jobs give equal bytes, whatever `workers` is. The same request within other jobs may differ in
    the last detail: espeak-ng's state drifts within a batch.

    Args:
        jobs: (request, file to write) pairs.
        workers: programs running side by side.
        on_done: called with the number finished so far, from the workers' threads, one at a time.

    Returns:
        One result per job, in order.

    Raises:
        MachineError: the package espeakng-loader is missing, or the program failed.
        DataError: espeak-ng knows no such voice, or a text gave no sound.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise MachineError(
            "speech synthesis needs the package espeakng-loader (GPL-3)",
            mend="pip install espeakng-loader, or this package's extra 'tiny'",
        )
    batches = _batches(jobs)
    workers = max(1, min(workers, len(batches)))
    results: dict[int, Spoken] = {}
    lock, stop = threading.Lock(), threading.Event()

    def collect(index: int, spoken: Spoken) -> None:
        with lock:
            results[index] = spoken
            if on_done is not None:
                on_done(len(results))

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(_run_program, batches[part::workers], collect, stop) for part in range(workers)]
        try:
            for outcome in running:
                outcome.result()
        finally:
            stop.set()
    return [results[index] for index in range(len(jobs))]


def _batches(jobs: Sequence[Job]) -> list[list[dict[str, Any]]]:
    """The jobs as the program wants them, batches of one voice: loading a voice takes longer than speaking."""
    rows = [{"id": index, "path": str(path), **asdict(request)} for index, (request, path) in enumerate(jobs)]
    rows.sort(key=lambda row: row["voice"])
    batches: list[list[dict[str, Any]]] = []
    for _, same_voice in groupby(rows, key=lambda row: row["voice"]):
        stream = iter(same_voice)
        while batch := list(islice(stream, BATCH)):
            batches.append(batch)
    return batches


def _run_program(
    batches: Sequence[Sequence[dict[str, Any]]], collect: Callable[[int, Spoken], None], stop: threading.Event
) -> None:
    """Let one program do its share of the batches; `stop` ends it early."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
        # One small resampling at a time: threads would only make the forks dearer.
        "OPENBLAS_NUM_THREADS": "1",
    }
    with tempfile.TemporaryFile("w+") as requests, tempfile.TemporaryFile("w+") as complaints:
        requests.writelines(json.dumps(batch) + "\n" for batch in batches)
        requests.seek(0)
        with subprocess.Popen(
            [sys.executable, "-m", PROGRAM],
            stdin=requests,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=environment,
            start_new_session=True,
        ) as program:
            answered = 0
            try:
                for line in program.stdout or ():
                    if stop.is_set():
                        return
                    collect(*_read_answer(json.loads(line)))
                    answered += 1
            finally:
                # The whole session: the program's forks too.
                with suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGTERM)
        wanted = sum(map(len, batches))
        if answered < wanted:
            complaints.seek(0)
            raise MachineError(
                f"the speech synthesis program stopped after {answered} of {wanted} utterances",
                where=" ".join(complaints.read().split())[-500:],
            )


def _read_answer(answer: dict) -> tuple[int, Spoken]:
    if "error" in answer:
        raise DataError(answer["error"], mend="change the voice or the text in the job file")
    return answer["id"], Spoken(tuple(Word(**word) for word in answer["words"]), answer["seconds"])
