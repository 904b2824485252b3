"""Spoken questions: is the text answer right, was the question understood, is there a spoken answer?

Reads target.answer and target.text (the transcript of the question).
"""

from __future__ import annotations

from collections.abc import Sequence

from slm.eval.metrics import Ratio, contains, exact, word_errors
from slm.eval.sets import Item
from slm.eval.tasks.task import Scored, common_flags, target
from slm.eval.voice import Voice
from slm.generation.output import Output, interleaving_faults
from slm.stages.sqa import split_answer
from slm.tokens.vocabulary import strip_units, text_to_units


class Sqa:
    """`em@1` and `contains@1` of the text answer, `transcript_wer@1`, `speech@1`: a well-formed spoken part."""

    stage = "sqa"
    headline = "em@1"
    errors = frozenset({"transcript_wer@1"})
    speech = True

    def score(self, items: Sequence[Item], outputs: Sequence[Output], voice: Voice | None) -> list[Scored]:
        """See `Scorer.score`."""
        return [self._one(item, output) for item, output in zip(items, outputs, strict=True)]

    def spoken(self, output: Output) -> list[int]:
        """The units of the spoken part."""
        return text_to_units(split_answer(output.raw).interleaved)

    def _one(self, item: Item, output: Output) -> Scored:
        parts = split_answer(output.raw)
        answer, right = strip_units(parts.answer), target(item, "answer")
        faults = interleaving_faults(parts.interleaved) + ([] if output.finished else ["unfinished"])
        ratios = {
            "em@1": exact(answer, right),
            "contains@1": contains(answer, right),
            "transcript_wer@1": word_errors(strip_units(parts.transcript), target(item, "text")),
            "speech@1": Ratio(float(not faults), 1.0),
        }
        return Scored(ratios, list(dict.fromkeys(common_flags(output, text_only=False) + faults)))
