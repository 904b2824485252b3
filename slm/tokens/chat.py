"""One question and its answer as token ids, through the tokenizer's own chat template.

Training and inference share `render_prompt`, so the prompt a model is asked with is, id for id, the
one it was trained on. Prompt and answer are tokenised apart: that is what generation does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.errors import ConfigError, DataError
from slm.tokens.vocabulary import UNIT_RUN, unit_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Llama-3's template prints a date; a fixed one keeps prompts the same on every day.
TEMPLATE_ARGUMENTS: dict[str, Any] = {"date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer; speech units are written `<|u|>` inside both strings."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Rendered:
    """Token ids of a whole turn; `supervised[i]` says whether `ids[i]` is a label."""

    ids: list[int]
    supervised: list[bool]


def render(tokenizer: PreTrainedTokenizerFast, turn: Turn) -> Rendered:
    """Token ids of a turn: the answer and the token that ends it are supervised, the prompt is not.

    Raises:
        ConfigError: the chat template does not put the answer right behind the prompt.
    """
    return next(render_many(tokenizer, [turn]))


def render_many(
    tokenizer: PreTrainedTokenizerFast, turns: Iterable[Turn], batch_size: int = 1024
) -> Iterator[Rendered]:
    """`render` of many turns, in order, tokenised a batch at a time (several times faster)."""
    stream = iter(turns)
    while batch := list(islice(stream, batch_size)):
        pieces = [_pieces(tokenizer, turn) for turn in batch]
        ids = _encode(tokenizer, [piece for triple in pieces for piece in triple])
        for prompt, answer, tail in zip(ids[0::3], ids[1::3], ids[2::3], strict=True):
            if not tail:
                raise ConfigError("the chat template ends an answer with no token of its own", where="chat_template")
            mask = [False] * len(prompt) + [True] * (len(answer) + 1) + [False] * (len(tail) - 1)
            yield Rendered(prompt + answer + tail, mask)


def render_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Token ids up to where the answer starts; `render(...).ids` starts with them."""
    return render_prompts(tokenizer, [prompt])[0]


def render_prompts(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[list[int]]:
    """`render_prompt` of many prompts at once."""
    return _encode(tokenizer, [_prompt_text(tokenizer, prompt) for prompt in prompts])


def end_of_answer(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends an answer: the one generation stops at."""
    rendered = render(tokenizer, Turn("a", "a"))
    return rendered.ids[max(i for i, supervised in enumerate(rendered.supervised) if supervised)]


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Ids back to text, special tokens and spaces as they were: the inverse of tokenisation."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    # The backend directly: transformers' wrapper costs more than the tokenisation of a short text.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    first = backend.token_to_id(unit_token(0))
    short = [(text, []) if first is None else _shorten(backend, text, first) for text in texts]
    encodings = backend.encode_batch_fast([text for text, _ in short], add_special_tokens=False)
    return [_lengthen(encoding.ids, runs, first or 0) for encoding, (_, runs) in zip(encodings, short, strict=True)]


def _shorten(backend: Any, text: str, first: int) -> tuple[str, list[np.ndarray]]:
    """The text with the first unit of every run alone, and all the runs.

    The tokenizer cuts a text at unit tokens before it does anything else, so what stands around a run gets the same
    ids when the run is shorter; and a number becomes an id much faster than its token does.
    """
    runs: list[np.ndarray] = []

    def keep_first(run: re.Match[str]) -> str:
        units = np.fromstring(run[0][2:-2].replace("|><|", " "), np.int64, sep=" ")
        runs.append(units)
        return unit_token(units[0])

    shorter = UNIT_RUN.sub(keep_first, text)
    highest = max((int(run.max()) for run in runs), default=0)
    if backend.token_to_id(unit_token(highest)) != first + highest:
        return text, []  # some of these are no units of this tokenizer but plain text
    return shorter, runs


def _lengthen(ids: list[int], runs: list[np.ndarray], first: int) -> list[int]:
    """The inverse of `_shorten`, after tokenisation: the first unit of each run is followed by the others."""
    if not runs:
        return ids
    found: list[int] = []
    waiting = iter(runs)
    run = next(waiting, None)
    for token in ids:
        found.append(token)
        if run is not None and token == first + run[0]:
            found += (first + run[1:]).tolist()
            run = next(waiting, None)
    return found


def _prompt_text(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    return _template(tokenizer, [{"role": "user", "content": prompt}], True)


def _pieces(tokenizer: PreTrainedTokenizerFast, turn: Turn) -> tuple[str, str, str]:
    """The template's text as (up to the answer, the answer, from the answer's end)."""
    prompt = _prompt_text(tokenizer, turn.prompt)
    messages = [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": turn.answer}]
    whole = _template(tokenizer, messages, False)
    if whole.startswith(prompt):
        rest = whole[len(prompt) :]
        for answer in (turn.answer, turn.answer.strip()):
            if rest.startswith(answer):
                return prompt, answer, rest[len(answer) :]
    raise ConfigError(
        "the chat template does not write the answer right behind the generation prompt",
        where=f"chat_template, at the prompt {turn.prompt[:60]!r}",
        mend="use a template whose generation prompt is what precedes an assistant message",
    )


def _template(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], generation: bool) -> str:
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template", mend="use an instruction-tuned model's tokenizer")
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation, **TEMPLATE_ARGUMENTS
    )
    return str(text)
