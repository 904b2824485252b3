"""Questions, and the prompts they become: by the recipes and the chat template that training uses, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from slm.errors import ConfigError, DataError
from slm.stages import RECIPES
from slm.stages.wordings import ASR_WORDINGS, TTS_WORDINGS, wording
from slm.tokens.vocabulary import UnitSet, text_to_units

Task = Literal["llm", "asr", "tts", "sqa"]
HEARD: tuple[Task, ...] = ("asr", "sqa")
"""Tasks whose question is speech; that of the others is text."""
_WORDINGS = {"asr": ASR_WORDINGS, "tts": TTS_WORDINGS}


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        id: for people.
        number: its place among all questions: decides the default wording and the random stream.
        text: in writing; or
        units: as speech, with repeats, as the extractor gives them.
        instruction: wording of asr and tts; empty takes turns among the recipe's own.
    """

    id: str
    number: int = 0
    text: str = ""
    units: Sequence[int] = ()
    instruction: str = ""


def task_of(task: str | None, *, heard: bool) -> Task:
    """The task that was named, or the usual one: `sqa` for speech, `llm` for text.

    Raises:
        ConfigError: no such task, or one that takes the other kind of question.
    """
    if task is None:
        return "sqa" if heard else "llm"
    found = next((known for known in get_args(Task) if known == task), None)
    if found is None:
        raise ConfigError(f"no task {task!r}", where="--task", mend=f"there are: {', '.join(get_args(Task))}")
    if (found in HEARD) != heard:
        raise ConfigError(
            f"task {task} takes {'speech' if found in HEARD else 'text'}, this is {'speech' if heard else 'text'}",
            where="--task",
            mend="asr and sqa take --audio, llm and tts take --text",
        )
    return found


def prompt_of(task: Task, question: Question, units: UnitSet | None) -> str:
    """What the model is asked, units written `<|u|>`, before the chat template.

    Raises:
        DataError: nothing is asked, or units that the model does not have.
    """
    return RECIPES[task].prompt(_example(task, question, units))


def _example(task: Task, question: Question, units: UnitSet | None) -> Mapping[str, Any]:
    """The question as an example of the task's recipe."""
    instruction = question.instruction or (wording(_WORDINGS[task], question.number) if task in _WORDINGS else "")
    if not (len(question.units) if task in HEARD else question.text.strip()):
        raise DataError("the question is empty", where=question.id)
    if task in HEARD:
        if units is None:
            raise DataError("the model has no speech units, so it hears nothing", where=question.id)
        _require_known(question.units, units, question.id)
        heard = units.for_role(question.units, "input")
        return {"id": question.id, "instruction": instruction, "discrete_unit": heard, "input_unit": heard}
    text = question.text.strip()
    written = text_to_units(text)
    if units is not None:
        _require_known(written, units, question.id)
    return {"id": question.id, "instruction": instruction, "transcription": text, "input": text}


def _require_known(found: Sequence[int], units: UnitSet, where: str) -> None:
    if len(found) and not (min(found) >= 0 and max(found) < units.count):
        raise DataError(
            f"units {min(found)}..{max(found)} are outside the model's {units.count}",
            where=where,
            mend="extract them with the extractor and codebook that the model was trained with",
        )
