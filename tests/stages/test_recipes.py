from __future__ import annotations

import pytest

from slm.errors import DataError
from slm.stages import RECIPES
from slm.stages.sqa import SpokenAnswer, split_answer
from slm.stages.wordings import ASR_WORDINGS, TTS_WORDINGS, wording

EXAMPLES = {
    "llm": {"input": "what is two plus two", "output": "four"},
    "asr": {"instruction": "Write it.", "discrete_unit": [5, 5, 9], "transcription": "the cat"},
    "tts": {"instruction": "Say it.", "transcription": "the cat", "interleaf": "the<|5|> cat<|9|>"},
    "sqa": {
        "input_unit": [5, 9],
        "input_pseudo": "what is it",
        "output_pseudo": "a cat",
        "output_interleaf": "a<|1|> cat<|2|>",
    },
}
TURNS = {
    "llm": ("what is two plus two", "four"),
    "asr": ("Write it.\n<|5|><|5|><|9|>", "the cat"),
    "tts": ("Say it.\nthe cat", "the<|5|> cat<|9|>"),
    "sqa": ("<|5|><|9|>", "what is it\n\na cat\n\na<|1|> cat<|2|>"),
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_form_of_each_stage(name):
    turn = RECIPES[name].turn(EXAMPLES[name])
    assert (turn.prompt, turn.answer) == TURNS[name]
    assert set(RECIPES[name].columns) == set(EXAMPLES[name])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_missing_or_empty_column_is_named(name):
    for column, value in EXAMPLES[name].items():
        with pytest.raises(DataError, match=f"'{column}' is missing"):
            RECIPES[name].turn({k: v for k, v in EXAMPLES[name].items() if k != column})
        with pytest.raises(DataError, match=f"'{column}' is empty"):
            RECIPES[name].turn({**EXAMPLES[name], column: type(value)()})


def test_a_prompt_needs_no_answer():
    assert RECIPES["sqa"].prompt({"input_unit": [5, 9]}) == "<|5|><|9|>"
    with pytest.raises(DataError, match="input_pseudo"):
        RECIPES["sqa"].answer({"input_unit": [5, 9]})


def test_the_parts_of_a_spoken_answer():
    assert split_answer(TURNS["sqa"][1]) == SpokenAnswer("what is it", "a cat", "a<|1|> cat<|2|>")
    assert split_answer("what is") == SpokenAnswer("what is", "", "")
    assert split_answer("") == SpokenAnswer("", "", "")


def test_wordings_take_turns():
    assert {wording(ASR_WORDINGS, row) for row in range(10)} == set(ASR_WORDINGS)
    assert wording(TTS_WORDINGS, 13) == TTS_WORDINGS[3]
    assert not set(ASR_WORDINGS) & set(TTS_WORDINGS)
