"""Scores of single answers, each a ratio, so that a corpus figure is a ratio of sums.

Every rule has a name with a version (`wer@1`); a rule that changes gets a new version, and results
of different versions are never compared.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

# English spelling variants that Whisper's own file maps; without that file no word is respelled.
SPELLING: dict[str, str] = {}
_TOKEN = re.compile(r"[^\W_]+", re.UNICODE)


class Ratio(NamedTuple):
    """One item's share of a figure: errors of words, or 1 of 1 for a right answer."""

    value: float
    weight: float


@cache
def _whisper() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(SPELLING)


def normalise(text: str) -> str:
    """Whisper's English normalisation: lower case, no punctuation, numbers as digits, contractions written out."""
    return str(_whisper()(text)).strip()


def normaliser_name() -> str:
    """Name and content hash of the normaliser, to be printed with every word error rate."""
    import transformers

    spelling = hashlib.sha256(repr(sorted(SPELLING.items())).encode()).hexdigest()[:8]
    return f"whisper-english, transformers {transformers.__version__}, spelling map {spelling}"


def plain(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(answer: str, right: str | Sequence[str]) -> Ratio:
    """1 if the answer equals one of the right ones after `plain`; an empty answer is never right."""
    found = plain(answer)
    accepted = [right] if isinstance(right, str) else list(right)
    return Ratio(float(bool(found) and found in {plain(one) for one in accepted}), 1.0)


def contains(answer: str, right: str | Sequence[str]) -> Ratio:
    """1 if a right answer's tokens occur side by side in the answer (DPR's `has_answer`, after `normalise`)."""
    said = _tokens(answer)
    accepted = [right] if isinstance(right, str) else list(right)
    for wanted in map(_tokens, accepted):
        spans = range(len(said) - len(wanted) + 1)
        if wanted and any(said[i : i + len(wanted)] == wanted for i in spans):
            return Ratio(1.0, 1.0)
    return Ratio(0.0, 1.0)


def word_errors(answer: str, reference: str) -> Ratio:
    """Word errors of an answer against a reference, both normalised; sums give the corpus word error rate."""
    return _errors(normalise(reference), normalise(answer))


def unit_errors(units: Sequence[int], reference: Sequence[int]) -> Ratio:
    """Edits between two unit strings; sums give the unit edit rate."""
    return _errors(" ".join(map(str, reference)), " ".join(map(str, units)))


def _errors(reference: str, hypothesis: str) -> Ratio:
    import jiwer

    length = len(reference.split())
    if not length:
        return Ratio(float(len(hypothesis.split())), 0.0)
    if not hypothesis:
        return Ratio(float(length), float(length))
    counts = jiwer.process_words(reference, hypothesis)
    return Ratio(float(counts.substitutions + counts.deletions + counts.insertions), float(length))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(unicodedata.normalize("NFKD", normalise(text)))
