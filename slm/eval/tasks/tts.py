"""Speech synthesis, without a pretrained judge. Reads target.text and target.units (output-role units).

Four views: the units against those of a reference recording (`uer`); what the extractor hears in the
generated wave, against the same reference (`wave_uer`: what a listener gets, silence being all deletions);
what it hears against the units that were spoken (`resynthesis_uer`), next to the same figure for the
reference units (`ceiling_uer`: what vocoder and extractor lose by themselves, the best that `wave_uer` can
be); and the form of the interleaving.
"""

from __future__ import annotations

from collections.abc import Sequence

from slm.eval.metrics import Ratio, unit_errors, word_errors
from slm.eval.sets import Item
from slm.eval.tasks.task import Scored, common_flags, target
from slm.eval.voice import Voice
from slm.generation.output import Output, interleaving_faults


class Tts:
    """`uer@1`, `text_wer@1`, `malformed@1`; with a voice `wave_uer@1`, `resynthesis_uer@1`, `ceiling_uer@1`."""

    stage = "tts"
    headline = "uer@1"
    errors = frozenset({"uer@1", "text_wer@1", "malformed@1", "wave_uer@1", "resynthesis_uer@1", "ceiling_uer@1"})
    speech = True

    def __init__(self, resynthesise: int = 20) -> None:
        self.resynthesise = resynthesise

    def score(self, items: Sequence[Item], outputs: Sequence[Output], voice: Voice | None) -> list[Scored]:
        """See `Scorer.score`; the first `resynthesise` items also go through the voice."""
        scored = [self._one(item, output) for item, output in zip(items, outputs, strict=True)]
        if voice is not None:
            for item, output, one in list(zip(items, outputs, scored, strict=True))[: self.resynthesise]:
                reference = [int(unit) for unit in target(item, "units")]
                heard = voice.heard(output.units)
                one.ratios["wave_uer@1"] = unit_errors(heard, reference)
                one.ratios["resynthesis_uer@1"] = unit_errors(heard, output.units)
                one.ratios["ceiling_uer@1"] = unit_errors(voice.heard(reference), reference)
        return scored

    def spoken(self, output: Output) -> list[int]:
        """Every unit of the output."""
        return output.units

    def _one(self, item: Item, output: Output) -> Scored:
        faults = interleaving_faults(output.raw) + ([] if output.finished else ["unfinished"])
        ratios = {
            "uer@1": unit_errors(output.units, target(item, "units")),
            "text_wer@1": word_errors(output.text, target(item, "text")),
            "malformed@1": Ratio(float(bool(faults)), 1.0),
        }
        return Scored(ratios, list(dict.fromkeys(common_flags(output, text_only=False) + faults)))
