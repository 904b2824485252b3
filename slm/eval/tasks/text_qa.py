"""Text questions: exact match. Reads target.answer, a string or a list of right answers."""

from __future__ import annotations

from collections.abc import Sequence

from slm.eval.metrics import contains, exact
from slm.eval.sets import Item
from slm.eval.tasks.task import Scored, common_flags, target
from slm.eval.voice import Voice
from slm.generation.output import Output


class TextQA:
    """`em@1`: the whole answer, normalised, is right; `contains@1`: it holds a right answer."""

    stage = "llm"
    headline = "em@1"
    errors: frozenset[str] = frozenset()
    speech = False

    def score(self, items: Sequence[Item], outputs: Sequence[Output], voice: Voice | None) -> list[Scored]:
        """See `Scorer.score`."""
        return [self._one(item, output) for item, output in zip(items, outputs, strict=True)]

    def spoken(self, output: Output) -> list[int]:
        """Nothing: the answer is text."""
        return []

    def _one(self, item: Item, output: Output) -> Scored:
        right = target(item, "answer")
        ratios = {"em@1": exact(output.text, right), "contains@1": contains(output.text, right)}
        return Scored(ratios, common_flags(output, text_only=True))
