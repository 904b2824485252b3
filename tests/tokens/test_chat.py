from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.errors import ConfigError, DataError
from slm.tokens.chat import Turn, decode, end_of_answer, render, render_many, render_prompt, render_prompts

TURNS = [
    Turn("what is the capital of france", "paris"),
    Turn("say this.\nthe cat", "the<|5|><|9|> cat<|3|>"),
    Turn("<|5|><|5|><|6|>", "what is\n\nparis\n\nparis<|7|>"),
]


def test_a_turn_is_the_template_with_the_answer_and_its_end_supervised(tokenizer_and_vocabulary):
    tokenizer, _ = tokenizer_and_vocabulary
    for turn in TURNS:
        rendered = render(tokenizer, turn)
        messages = [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": turn.answer}]
        assert decode(tokenizer, rendered.ids) == tokenizer.apply_chat_template(messages, tokenize=False)
        labels = [i for i, supervised in zip(rendered.ids, rendered.supervised, strict=True) if supervised]
        assert decode(tokenizer, labels) == turn.answer + "<|end|>"
        prompt = render_prompt(tokenizer, turn.prompt)
        assert rendered.ids[: len(prompt)] == prompt
        assert not any(rendered.supervised[: len(prompt)]) and rendered.supervised[len(prompt)]


def test_many_equal_one_by_one(tokenizer_and_vocabulary):
    tokenizer, _ = tokenizer_and_vocabulary
    many = list(render_many(tokenizer, iter(TURNS * 3), batch_size=2))
    assert many == [render(tokenizer, turn) for turn in TURNS * 3]
    prompts = [turn.prompt for turn in TURNS]
    assert render_prompts(tokenizer, prompts) == [render_prompt(tokenizer, prompt) for prompt in prompts]


def test_text_turns_are_the_same_with_and_without_units(text_tokenizer, units):
    from slm.tokens.vocabulary import add_units

    before = render(text_tokenizer, TURNS[0])
    add_units(text_tokenizer, units)
    assert render(text_tokenizer, TURNS[0]) == before


def test_end_of_answer(tokenizer_and_vocabulary):
    tokenizer, _ = tokenizer_and_vocabulary
    assert end_of_answer(tokenizer) == tokenizer.eos_token_id


def test_a_template_that_trims(tokenizer_and_vocabulary):
    tokenizer, _ = tokenizer_and_vocabulary
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | trim")
    rendered = render(tokenizer, Turn(" a ", " b\n"))
    assert decode(tokenizer, rendered.ids) == "<|user|>a<|assistant|>b<|end|>\n"


def test_templates_that_cannot_be_used(tokenizer_and_vocabulary):
    tokenizer, _ = tokenizer_and_vocabulary
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="no token of its own"):
        render(tokenizer, TURNS[0])
    tokenizer.chat_template += "{% if add_generation_prompt %}answer:{% endif %}"
    with pytest.raises(ConfigError, match="right behind"):
        render(tokenizer, TURNS[0])
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        render(tokenizer, TURNS[0])


PIECES = st.lists(
    st.one_of(
        st.integers(0, 70).map(lambda unit: f"<|{unit}|>"),  # 64 and more are no units of this tokenizer
        st.text(alphabet="ab <|>0123é\n", max_size=4),
        st.sampled_from([" the capital", "<|user|>", "<|end|>", "<|05|>", "<|", "|>"]),
    ),
    max_size=14,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PIECES, PIECES)
def test_runs_of_units_get_the_ids_that_the_tokenizer_gives_them(tokenizer_and_vocabulary, prompt, answer):
    tokenizer, _ = tokenizer_and_vocabulary
    turn = Turn("".join(prompt), "".join(answer))
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": turn.prompt}], tokenize=False, add_generation_prompt=True
    )
    wanted = tokenizer.backend_tokenizer.encode(whole, add_special_tokens=False).ids
    assert render_prompt(tokenizer, turn.prompt) == wanted
    answered = tokenizer.backend_tokenizer.encode(turn.answer, add_special_tokens=False).ids
    assert render(tokenizer, turn).ids[len(wanted) :][: len(answered)] == answered
