"""From examples to samples: through recipe, chat template and tokenizer, with what is left out counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from slm.errors import ConfigError, DataError
from slm.stages import Recipe
from slm.tokens.chat import Rendered, Turn, render, render_many

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OVERLONG = ("drop", "split_at_segment", "truncate_target")
MAX_DROPPED = 0.01

Example = Mapping[str, Any]


@dataclass
class Counts:
    """What became of the examples.

    Attributes:
        examples: seen.
        left_out: not wanted by the job's filter.
        empty: skipped because a column of the prompt or the answer was empty.
        dropped: left out because they were longer than `max_length`.
        truncated: kept with the end of their answer cut off.
        split: kept as two or more samples.
    """

    examples: int = 0
    left_out: int = 0
    empty: int = 0
    dropped: int = 0
    truncated: int = 0
    split: int = 0

    def add(self, other: Counts) -> None:
        """Count the other's too."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)


class Sampler:
    """Turns examples into samples of at most `max_length` tokens, and counts.

    Args:
        recipe: how an example becomes a prompt and an answer.
        tokenizer: of the ids.
        max_length: tokens of a sample at most.
        overlong: what happens to longer ones. `drop` leaves them out; `truncate_target` cuts the end of the
            answer off (its end token too: a model should not learn to stop there) and leaves out those whose
            prompt alone is too long; `split_at_segment` cuts between two segments of the answer, as often as it
            takes, and leaves out those that can't be cut; None is `drop`.

    Attributes:
        counts: of all examples so far.

    Raises:
        ConfigError: an unknown policy, or one that the recipe can't follow.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, *, max_length: int, overlong: str | None
    ) -> None:
        if overlong is not None and overlong not in OVERLONG:
            raise ConfigError(f"overlong: expected one of {', '.join(OVERLONG)}, got {overlong!r}")
        if overlong == "split_at_segment" and recipe.split is None:
            raise ConfigError(f"overlong: split_at_segment: an answer of recipe {recipe.name} can't be cut in two")
        self.recipe, self.tokenizer = recipe, tokenizer
        self.max_length, self.overlong = max_length, overlong
        self.counts = Counts()

    def samples(self, examples: Iterable[Example | None]) -> Iterator[Rendered]:
        """Samples of the examples, in order; None is an example that was left out.

        Raises:
            DataError: an example lacks a column.
        """
        waiting: deque[Example] = deque()
        for rendered in render_many(self.tokenizer, self._turns(examples, waiting)):
            yield from self._fit(rendered, waiting.popleft())

    def _turns(self, examples: Iterable[Example | None], waiting: deque[Example]) -> Iterator[Turn]:
        for example in examples:
            self.counts.examples += 1
            if example is None:
                self.counts.left_out += 1
                continue
            if any(_is_empty(example, column) for column in self.recipe.columns):
                self.counts.empty += 1
                continue
            turn = self.recipe.turn(example)
            if turn.answer.strip():
                waiting.append(example)
                yield turn
            else:
                self.counts.empty += 1

    def _fit(self, sample: Rendered, example: Example) -> list[Rendered]:
        if len(sample.ids) <= self.max_length:
            return [sample]
        if self.overlong == "truncate_target" and any(sample.supervised[: self.max_length]):
            self.counts.truncated += 1
            return [Rendered(sample.ids[: self.max_length], sample.supervised[: self.max_length])]
        if self.overlong == "split_at_segment":
            parts = self._split(example)
            if parts:
                self.counts.split += 1
                return parts
        self.counts.dropped += 1
        return []

    def _split(self, example: Example) -> list[Rendered]:
        """Samples that fit and together hold the whole example, [] where there is no way to cut it so."""
        assert self.recipe.split is not None
        halves = self.recipe.split(example)
        if halves is None:
            return []
        found: list[Rendered] = []
        for half in halves:
            rendered = render(self.tokenizer, self.recipe.turn(half))
            parts = [rendered] if len(rendered.ids) <= self.max_length else self._split(half)
            if not parts:
                return []
            found += parts
        return found


def check_dropped(counts: Counts, *, of: int, max_length: int, overlong: str | None, where: str) -> None:
    """Refuse to lose more than 1 % of a set without being told to.

    Args:
        counts: so far.
        of: examples there are in all, or so far where that is not known.

    Raises:
        DataError: too many were dropped and no policy is set.
    """
    if overlong is None and counts.dropped > MAX_DROPPED * of:
        raise DataError(
            f"{counts.dropped} of {of} examples are longer than max_length = {max_length} tokens",
            where=where,
            mend="raise max_length, or say what to do with them: overlong: drop, truncate_target, split_at_segment",
        )


def describe(counts: Counts) -> str:
    """What was not kept as it was, in words; empty when everything was."""
    words = {
        "left_out": "left out by the filter",
        "empty": "were empty and skipped",
        "dropped": "too long and dropped",
        "truncated": "cut short",
        "split": "split",
    }
    parts = [f"{getattr(counts, name)} {text}" for name, text in words.items() if getattr(counts, name)]
    return f"of {counts.examples} examples, " + ", ".join(parts) if parts else ""


def _is_empty(example: Example, column: str) -> bool:
    """Whether a column is there but holds nothing; one that is not there at all is the recipe's error."""
    if column not in example:
        return False
    value = example[column]
    return value is None or len(value.strip() if isinstance(value, str) else value) == 0
