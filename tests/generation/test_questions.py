"""Inference asks with the prompts that training used, id for id."""

from __future__ import annotations

import pytest

from slm.errors import ConfigError, DataError
from slm.generation.questions import Question, prompt_of, task_of
from slm.stages import RECIPES
from slm.tokens.chat import Turn, render, render_prompt
from slm.tokens.vocabulary import UnitSet, load_tokenizer

RAW = [5, 5, 9, 9, 9, 2]


@pytest.mark.parametrize("repeats", ["kept", "removed"])
@pytest.mark.parametrize("task", sorted(RECIPES))
def test_a_prompt_is_the_beginning_of_the_training_row(task, repeats, pico_tokenizer):
    tokenizer, _ = load_tokenizer(pico_tokenizer)
    units = UnitSet(16, 25.0, "mel_kmeans", "0" * 64, input=repeats)
    heard = units.for_role(RAW, "input")
    example = {
        "instruction": "Write it.", "discrete_unit": heard, "transcription": "the cat", "interleaf": "the<|1|>",
        "input_unit": heard, "input_pseudo": "a", "output_pseudo": "b", "output_interleaf": "b<|2|>",
        "input": "the cat", "output": "meow",
    }  # fmt: skip
    row = render(tokenizer, RECIPES[task].turn(example))
    question = Question("q", text=" the cat\n", units=RAW, instruction="Write it.")
    ids = render_prompt(tokenizer, prompt_of(task, question, units))
    first = row.supervised.index(True)
    assert ids == row.ids[:first]
    assert row == render(tokenizer, Turn(prompt_of(task, question, units), RECIPES[task].answer(example)))


def test_wordings_take_turns_as_in_training(units):
    from slm.data.sources.columns import instruction

    for task in ("asr", "tts"):
        for number in (0, 3, 14):
            prompt = prompt_of(task, Question("q", number, text="a", units=[1]), units)
            assert prompt.splitlines()[0] == instruction(task, number)


@pytest.mark.parametrize(
    ("task", "question", "what"),
    [
        ("sqa", Question("q", units=[3, 16]), "units 3..16 are outside the model's 16"),
        ("llm", Question("q", text="say <|16|>"), "units 16..16 are outside the model's 16"),
        ("asr", Question("q"), "the question is empty"),
        ("tts", Question("q", text=" \n"), "the question is empty"),
    ],
)
def test_what_can_not_be_asked(task, question, what, units):
    with pytest.raises(DataError, match=what):
        prompt_of(task, question, units)


def test_a_model_without_units_hears_nothing():
    with pytest.raises(DataError, match="hears nothing"):
        prompt_of("sqa", Question("q", units=[1]), None)


def test_the_task_follows_the_kind_of_question():
    assert task_of(None, heard=True) == "sqa" and task_of(None, heard=False) == "llm"
    assert task_of("asr", heard=True) == "asr"
    for task, heard in (("asr", False), ("tts", True)):
        with pytest.raises(ConfigError, match=f"task {task} takes"):
            task_of(task, heard=heard)
    with pytest.raises(ConfigError, match="no task 'song'"):
        task_of("song", heard=True)
