"""Instruction following: rules that a program can check. Reads target.rule and the rule's arguments.

The arguments stand in target.args or beside the rule: {"rule": "repeat", "words": "cat", "times": 2}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from slm.errors import DataError
from slm.eval.metrics import Ratio, normalise
from slm.eval.sets import Item
from slm.eval.tasks.task import Scored, common_flags, target
from slm.eval.voice import Voice
from slm.generation.output import Output


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _repeat(answer: str, words: str, times: int = 2) -> bool:
    return _words(answer) == _words(words) * times


def _backwards(answer: str, words: str) -> bool:
    return _words(answer) == _words(words)[::-1]


def _first(answer: str, words: str) -> bool:
    return _words(answer) == _words(words)[:1]


def _last(answer: str, words: str) -> bool:
    return _words(answer) == _words(words)[-1:]


def _count(answer: str, words: str) -> bool:
    return normalise(answer) == normalise(str(len(_words(words))))


RULES: dict[str, Callable[..., bool]] = {
    "repeat": _repeat,
    "backwards": _backwards,
    "first": _first,
    "last": _last,
    "count": _count,
}
"""Rule -> whether an answer follows it, given the arguments."""


class Instructions:
    """`rule@1`: the answer follows the rule, case and punctuation aside."""

    stage = "llm"
    headline = "rule@1"
    errors: frozenset[str] = frozenset()
    speech = False

    def score(self, items: Sequence[Item], outputs: Sequence[Output], voice: Voice | None) -> list[Scored]:
        """See `Scorer.score`."""
        return [self._one(item, output) for item, output in zip(items, outputs, strict=True)]

    def spoken(self, output: Output) -> list[int]:
        """Nothing: the answer is text."""
        return []

    def _one(self, item: Item, output: Output) -> Scored:
        rule = target(item, "rule")
        beside = {key: value for key, value in item.target.items() if key not in ("rule", "args", "answer")}
        try:
            followed = RULES[rule](output.text, **item.target.get("args", beside))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"rule {rule!r} can't be checked: {error}",
                where=f"evaluation item {item.id}",
                mend=f"the rules are {', '.join(RULES)}",
            ) from None
        return Scored({"rule@1": Ratio(float(followed), 1.0)}, common_flags(output, text_only=True))
