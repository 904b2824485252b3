"""Examples of the tiny world in the recipes' columns: training rows and test items."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.config.tiny import TinyCorpusConfig
from slm.tiny import world
from slm.tiny.corpus import Plan, SpokenQuestion, Utterance
from slm.tokens.alignment import Word
from slm.tokens.interleave import WORD_BY_WORD, weave
from slm.tokens.vocabulary import UnitSet

Row = dict[str, Any]


@dataclass(frozen=True)
class Speech:
    """What is known of the recordings, by utterance id."""

    words: Mapping[str, Sequence[Word]]
    units: Mapping[str, Sequence[int]]
    """With repeats."""
    unit_set: UnitSet

    def heard(self, utterance: Utterance) -> list[int]:
        """Units as a question holds them."""
        return self.unit_set.for_role(self.units[utterance.id], "input")

    def said(self, utterance: Utterance) -> list[int]:
        """Units as an answer holds them."""
        return self.unit_set.for_role(self.units[utterance.id], "output")

    def interleaved(self, utterance: Utterance) -> str:
        """Words and units of an answer, woven."""
        words, units = self.words[utterance.id], self.units[utterance.id]
        repeats = self.unit_set.output
        return weave(words, units, self.unit_set.rate_hz, WORD_BY_WORD, repeats=repeats, key=utterance.id)


def turn_of(wordings: Sequence[str], row: int) -> str:
    """Wordings take turns, so each is used equally often."""
    return wordings[row % len(wordings)]


def llm_rows(questions: Sequence[world.Question], config: TinyCorpusConfig, seed: int) -> list[Row]:
    """Text questions, each several times, and instructions, shuffled."""
    rows = [{"input": q.text, "output": q.answer} for q in questions for _ in range(config.question_copies)]
    rows += [{"input": i.text, "output": i.answer} for i in instructions(config, seed) if i.split == "train"]
    random.Random(f"llm rows {seed}").shuffle(rows)
    return rows


def instructions(config: TinyCorpusConfig, seed: int) -> list[world.Instruction]:
    """The world's instructions in the numbers of the configuration."""
    return world.instructions(seed, train=config.instructions, test=config.test_instructions)


def asr_row(utterance: Utterance, speech: Speech, row: int) -> Row:
    """Hear and write."""
    return {
        "instruction": turn_of(world.ASR_WORDINGS, row),
        "discrete_unit": speech.heard(utterance),
        "transcription": utterance.request.text,
    }


def tts_row(utterance: Utterance, speech: Speech, row: int) -> Row:
    """Read and speak."""
    return {
        "instruction": turn_of(world.TTS_WORDINGS, row),
        "transcription": utterance.request.text,
        "interleaf": speech.interleaved(utterance),
    }


def sqa_row(spoken: SpokenQuestion, speech: Speech) -> Row:
    """Hear a question, write it, answer it in text and in speech."""
    return {
        "input_unit": speech.heard(spoken.asked),
        "input_pseudo": spoken.question.text,
        "output_pseudo": spoken.question.answer,
        "output_interleaf": speech.interleaved(spoken.answered),
    }


def speech_rows(name: str, plan: Plan, speech: Speech) -> list[Row]:
    """The training rows of `asr`, `tts` or `sqa`, in an order that mixes texts."""
    if name == "sqa":
        rows = [sqa_row(spoken, speech) for spoken in plan.asked["sqa"]]
        random.Random("sqa rows").shuffle(rows)
        return rows
    make = {"asr": asr_row, "tts": tts_row}[name]
    return [make(utterance, speech, number) for number, utterance in enumerate(plan.spoken[name])]


def test_sets(plan: Plan, speech: Speech, config: TinyCorpusConfig, seed: int) -> dict[str, list[Row]]:
    """Every test set: its items, as evaluation reads them (audio paths relative to the data folder)."""
    asked = plan.questions[: config.test_questions]
    held_back = [i for i in instructions(config, seed) if i.split == "test"]
    return {
        "text_qa": list(_text_items("text_qa", asked)),
        "instructions": list(_instruction_items(held_back)),
        "asr": list(_asr_items("asr", plan.spoken["test_asr"], speech)),
        "asr_random": list(_asr_items("asr_random", plan.spoken["test_asr_random"], speech)),
        "tts": list(_tts_items(plan.spoken["test_tts"], speech)),
        "sqa": list(_sqa_items("sqa", plan.asked["test_sqa"], speech)),
        "sqa_new_voices": list(_sqa_items("sqa_new_voices", plan.asked["test_sqa_new_voices"], speech)),
    }


def _item(
    task: str, number: int, stage: str, example: Row, target: Row, tags: list[str],
    audio: Utterance | None = None, reference: Utterance | None = None,
) -> Row:  # fmt: skip
    return {
        "id": f"{task}-{number:04d}",
        "task": task,
        "stage": stage,
        "example": example,
        "target": target,
        "audio": audio and f"corpus/{audio.audio}",
        "reference_audio": reference and f"corpus/{reference.audio}",
        "tags": tags,
    }


def _text_items(task: str, questions: Sequence[world.Question]) -> Iterator[Row]:
    for number, q in enumerate(questions):
        yield _item(task, number, "llm", {"input": q.text, "output": q.answer}, {"answer": q.answer}, [q.topic])


def _instruction_items(items: Sequence[world.Instruction]) -> Iterator[Row]:
    for number, i in enumerate(items):
        target = {"answer": i.answer, "rule": i.rule, "args": i.args}
        yield _item("instructions", number, "llm", {"input": i.text, "output": i.answer}, target, [i.rule])


def _asr_items(task: str, utterances: Sequence[Utterance], speech: Speech) -> Iterator[Row]:
    for number, utterance in enumerate(utterances):
        tags = [utterance.kind, utterance.request.voice]
        example, target = asr_row(utterance, speech, number), {"text": utterance.request.text}
        yield _item(task, number, "asr", example, target, tags, utterance)


def _tts_items(utterances: Sequence[Utterance], speech: Speech) -> Iterator[Row]:
    for number, utterance in enumerate(utterances):
        target = {"text": utterance.request.text, "units": speech.said(utterance)}
        yield _item("tts", number, "tts", tts_row(utterance, speech, number), target, [utterance.kind], None, utterance)


def _sqa_items(task: str, asked: Sequence[SpokenQuestion], speech: Speech) -> Iterator[Row]:
    for number, spoken in enumerate(asked):
        q = spoken.question
        target = {"answer": q.answer, "text": q.text, "units": speech.said(spoken.answered)}
        tags = [q.topic, spoken.asked.request.voice]
        yield _item(task, number, "sqa", sqa_row(spoken, speech), target, tags, spoken.asked, spoken.answered)
