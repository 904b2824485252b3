"""Speech recognition: word error rate over the corpus. Reads target.text."""

from __future__ import annotations

from collections.abc import Sequence

from slm.eval.metrics import Ratio, word_errors
from slm.eval.sets import Item
from slm.eval.tasks.task import Scored, common_flags, target
from slm.eval.voice import Voice
from slm.generation.output import Output


class Asr:
    """`wer@1`: word errors over words of the references; `sentence@1`: share of sentences without an error."""

    stage = "asr"
    headline = "wer@1"
    errors = frozenset({"wer@1"})
    speech = True

    def score(self, items: Sequence[Item], outputs: Sequence[Output], voice: Voice | None) -> list[Scored]:
        """See `Scorer.score`."""
        return [self._one(item, output) for item, output in zip(items, outputs, strict=True)]

    def spoken(self, output: Output) -> list[int]:
        """Nothing: the answer is text."""
        return []

    def _one(self, item: Item, output: Output) -> Scored:
        errors = word_errors(output.text, target(item, "text"))
        ratios = {"wer@1": errors, "sentence@1": Ratio(float(errors.value == 0), 1.0)}
        return Scored(ratios, common_flags(output, text_only=True))
