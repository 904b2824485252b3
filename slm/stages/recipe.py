"""What a recipe is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slm.errors import DataError
from slm.tokens.chat import Turn

Form = Literal["text", "interleaved", "spoken_answer"]
"""What an answer looks like: text alone; words, each followed by its units; or transcript, answer and spoken answer."""


@dataclass(frozen=True)
class Recipe:
    """A stage's format.

    Attributes:
        name: `llm`, `asr`, `tts` or `sqa`.
        prompt_columns, answer_columns: what an example must hold for each half.
        compose_prompt, compose_answer: write a half from such an example; call `prompt`, `answer` or
            `turn`, which check the columns first.
        split: cuts an example in two that are examples themselves, None where that can't be done; None for
            recipes whose answers fit one prompt only.
        form: what its answers look like.
    """

    name: str
    prompt_columns: tuple[str, ...]
    answer_columns: tuple[str, ...]
    compose_prompt: Callable[[Mapping[str, Any]], str]
    compose_answer: Callable[[Mapping[str, Any]], str]
    split: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], Mapping[str, Any]] | None] | None = None
    form: Form = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a training example holds, each once."""
        return tuple(dict.fromkeys(self.prompt_columns + self.answer_columns))

    def prompt(self, example: Mapping[str, Any]) -> str:
        """What the model is asked.

        Raises:
            DataError: a column is missing or empty.
        """
        self._check(example, self.prompt_columns)
        return self.compose_prompt(example)

    def answer(self, example: Mapping[str, Any]) -> str:
        """What it should answer.

        Raises:
            DataError: a column is missing or empty.
        """
        self._check(example, self.answer_columns)
        return self.compose_answer(example)

    def turn(self, example: Mapping[str, Any]) -> Turn:
        """The example's prompt and answer.

        Raises:
            DataError: a column is missing or empty.
        """
        return Turn(self.prompt(example), self.answer(example))

    def _check(self, example: Mapping[str, Any], columns: tuple[str, ...]) -> None:
        for column in columns:
            value = example.get(column)
            if value is None or len(value) == 0:
                raise DataError(
                    f"column {column!r} is {'empty' if column in example else 'missing'}",
                    where=f"{self.name} example {example.get('id', '')}".strip(),
                    mend=f"a {self.name} example holds {', '.join(self.columns)}",
                )
