"""The espeak-ng program: `python -m slm.tiny.espeak` reads requests, writes WAV files and word times.

espeak-ng is GPL-3, so its library is loaded here only, in a process of its own; see
`slm.tiny.synthesis` for the other end of the pipe. A line of standard input is a batch, a JSON list
of requests {id, path, text, voice, rate, pitch}; standard output has a line for each request:
{id, words: [{text, start_s, end_s}], seconds} or {id, error}.

The library's state drifts from one utterance to the next (the same text never sounds exactly the
same twice), so each batch is spoken in a fork of the freshly initialised program: equal batches
give equal bytes, whatever was spoken before.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import MachineError, run_entry
from slm.speech.audio import SAMPLE_RATE, resample, write_audio

# Values of the library's C header, speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
PARAMETER_RATE, PARAMETER_PITCH = 1, 3
EVENT_LIST_END, EVENT_WORD = 0, 1

LONGEST_DATA_PATH = 120
"""The library copies the path of its data into a fixed buffer of 160 bytes."""
QUIET = 1e-3
"""Samples below this level, of 1, count as silence when the end of an utterance is trimmed."""


class _Identifier(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speaker:
    """The initialised library; what it says depends on what it has said before (module docstring).

    Raises:
        MachineError: the package is missing or the library does not start.
    """

    def __init__(self, data_link_folder: str) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise MachineError(
                "the package espeakng-loader (GPL-3) is missing",
                mend="pip install espeakng-loader, or this package's extra 'tiny'",
            ) from None
        data = str(espeakng_loader.get_data_path())
        if len(data.encode()) > LONGEST_DATA_PATH:
            link = Path(data_link_folder) / "data"
            link.symlink_to(data)
            data = str(link)
        self.variants = {path.name for path in (Path(data) / "voices" / "!v").iterdir()}
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 500, data.encode(), INITIALIZE_DONT_EXIT)
        if self.rate <= 0:
            raise MachineError("espeak-ng did not start", where=data)
        self._blocks: list[np.ndarray] = []
        self._events: list[tuple[int, int]] = []
        self._callback = _Callback(self._receive)
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        position = 0
        while events[position].type != EVENT_LIST_END:
            if events[position].type == EVENT_WORD:
                self._events.append((events[position].text_position - 1, events[position].sample))
            position += 1
        return 0

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> tuple[np.ndarray, list[tuple[int, float]]]:
        """One utterance.

        Returns:
            (float32 wave at 16 kHz, [(character position in the text, seconds) of each word event]).

        Raises:
            ValueError: no such voice, or the text gives no sound.
        """
        self._blocks.clear()
        self._events.clear()
        # Breathy voices mix in noise; its generator is seeded by the clock when the library starts.
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        variant = voice.partition("+")[2]  # an unknown one is passed over by the library without a word
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0 or (variant and variant not in self.variants):
            raise ValueError(f"espeak-ng knows no voice {voice!r}")
        self.library.espeak_SetParameter(PARAMETER_RATE, rate, 0)
        self.library.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
        encoded = text.encode() + b"\0"
        self.library.espeak_Synth(encoded, len(encoded), 0, 1, 0, CHARS_UTF8, None, None)
        self.library.espeak_Synchronize()
        if not self._blocks or not self._events:
            raise ValueError(f"espeak-ng made no speech of {text!r}")
        wave = resample(np.concatenate(self._blocks).astype(np.float32) / 32768.0, self.rate)
        loud = np.flatnonzero(np.abs(wave) > QUIET)
        if not loud.size:
            raise ValueError(f"espeak-ng made only silence of {text!r}")
        return wave[: loud[-1] + 1], [(position, sample / self.rate) for position, sample in self._events]


def word_times(text: str, events: Sequence[tuple[int, float]], seconds: float) -> list[dict[str, Any]]:
    """Start and end of every blank-separated word.

    espeak-ng speaks some pairs ("of the") as one word with one event; words without an event of
    their own share the time of the word before, by their number of characters. A word ends where
    the next one starts.

    Args:
        text: what was spoken.
        events: (character position, seconds), in order.
        seconds: length of the utterance.

    Returns:
        [{text, start_s, end_s}], times in seconds, non-decreasing.
    """
    words = [(found.start(), found.group()) for found in re.finditer(r"\S+", text)]
    groups: list[tuple[float, list[str]]] = []
    for number, (start, word) in enumerate(words):
        end = start + len(word)
        times = [time for position, time in events if start <= position < end]
        if number == 0:
            groups.append((0.0, [word]))
        elif times:
            groups.append((min(max(times[0], groups[-1][0]), seconds), [word]))
        else:
            groups[-1][1].append(word)
    ends = [start for start, _ in groups[1:]] + [seconds]
    timed = []
    for (since, members), until in zip(groups, ends, strict=True):
        letters, spoken = sum(map(len, members)), 0
        for member in members:
            begin = since + (until - since) * spoken / letters
            spoken += len(member)
            stop = since + (until - since) * spoken / letters
            timed.append({"text": member, "start_s": round(begin, 4), "end_s": round(stop, 4)})
    return timed


def answer(speaker: Speaker, request: dict[str, Any]) -> dict[str, Any]:
    """Speak one request into its file; what goes back through the pipe."""
    try:
        wave, events = speaker.speak(request["text"], request["voice"], request["rate"], request["pitch"])
    except ValueError as error:
        return {"id": request["id"], "error": str(error)}
    write_audio(request["path"], wave)
    seconds = len(wave) / SAMPLE_RATE
    return {"id": request["id"], "words": word_times(request["text"], events, seconds), "seconds": seconds}


def serve() -> None:
    """Answer every batch on standard input, each in a fork of its own.

    Raises:
        MachineError: a fork failed; what it had to say is on standard error.
    """
    import soundfile  # noqa: F401  imported once here, not in every fork
    import soxr  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="slm-espeak-") as folder:
        speaker = Speaker(folder)
        for line in sys.stdin:
            fork = os.fork()
            if fork == 0:
                code = 1
                try:
                    code = run_entry(partial(_answer_batch, speaker, json.loads(line)))
                finally:
                    os._exit(code)
            _, status = os.waitpid(fork, 0)
            if status != 0:
                raise MachineError(f"espeak-ng failed (status {status})")


def _answer_batch(speaker: Speaker, batch: Sequence[dict[str, Any]]) -> None:
    for request in batch:
        os.write(sys.stdout.fileno(), (json.dumps(answer(speaker, request)) + "\n").encode())


if __name__ == "__main__":
    sys.exit(run_entry(serve))
