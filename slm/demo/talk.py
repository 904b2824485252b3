"""What the page does when somebody speaks or writes: one question to every model that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from slm.demo.strip import unit_strip
from slm.errors import SlmError
from slm.generation.answers import Answer, Decoding, Refused, Speaker
from slm.generation.questions import Question, Task, task_of
from slm.speech.audio import SAMPLE_RATE, read_question
from slm.stages import RECIPES
from slm.stages.sqa import split_answer

AUTOMATIC = "automatic"
TASKS = (AUTOMATIC, *get_args(Task))


@dataclass(frozen=True)
class Reply:
    """What is shown of one model's answer.

    Attributes:
        heard: the transcript of a spoken question; empty otherwise.
        text: the answer in writing.
        sound: (rate, int16 [samples]); None where nothing is said.
        strip: the spoken answer as HTML.
        note: faults of the form, or why there is no answer.
    """

    heard: str = ""
    text: str = ""
    sound: tuple[int, np.ndarray] | None = None
    strip: str = ""
    note: str = ""


def reply(
    speaker: Speaker, text: str, audio: str | Path | None, *, task: str, instruction: str, decoding: Decoding
) -> Reply:
    """One model's answer; what is wrong with a question is said in the reply, for nothing may end the page.

    Args:
        text: a question in writing; read where there is no audio.
        audio: file of a spoken one.
        task: of `TASKS`; automatic is sqa for speech and llm for text.
    """
    try:
        found = task_of(None if task == AUTOMATIC else task, heard=audio is not None)
        units = speaker.hear([read_question(audio)])[0] if audio is not None else []
        question = Question("question", text=text, units=units, instruction=instruction)
        answer = speaker.answer(found, [question], decoding)[0]
        if isinstance(answer, Refused):
            return Reply(note=answer.why)
        return _shown(found, answer, speaker)
    except SlmError as error:
        return Reply(note="; ".join(part for part in (error.what, error.mend) if part))


def replies(
    speakers: Mapping[str, Speaker], text: str, audio: str | None, *, task: str, instruction: str, decoding: Decoding
) -> list[Reply]:
    """`reply` of every model, in their order."""
    return [
        reply(speaker, text, audio, task=task, instruction=instruction, decoding=decoding)
        for speaker in speakers.values()
    ]


def _shown(task: Task, answer: Answer, speaker: Speaker) -> Reply:
    woven = answer.output.raw
    if RECIPES[task].form == "spoken_answer":
        woven = split_answer(woven).interleaved
    wave = speaker.wave(answer)
    sound = (SAMPLE_RATE, np.round(np.clip(wave, -1, 1) * 32_767).astype(np.int16)) if len(wave) else None
    note = f"form: {', '.join(answer.faults)}" if answer.faults else ""
    if answer.units and speaker.vocoder is None:
        note = "; ".join(filter(None, (note, "no vocoder at hand (--speech): nothing can be heard")))
    return Reply(answer.transcript, answer.text or answer.output.text, sound, unit_strip(woven), note)
