"""Words in the characters a CTC model knows."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

STAR = -1
"""Stands for a run of letters or digits that the model has no character for: spoken, but unknown how."""
_APOSTROPHES = str.maketrans("’‘ʼ`", "''''")


@dataclass(frozen=True)
class Spelling:
    """Turns words into label sequences.

    Attributes:
        letters: character -> label; single characters only, no special tokens.
    """

    letters: Mapping[str, int]

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], special: frozenset[int]) -> Spelling:
        """The characters of a tokenizer's vocabulary, without its special tokens."""
        return cls({token: i for token, i in vocabulary.items() if len(token) == 1 and i not in special})

    def labels(self, word: str) -> list[int]:
        """The labels of a word; empty for one that is nothing but marks (`—`, `…`).

        A character that is unknown is tried in the other case and without its accents. Then letters
        and digits become `STAR`, a run of them one, and all else is left out: nobody speaks a comma.
        """
        labels: list[int] = []
        for character in word.translate(_APOSTROPHES):
            known = self._known(character)
            if known is None:
                known = [STAR] if character.isalnum() and labels[-1:] != [STAR] else []
            labels += known
        return labels

    def _known(self, character: str) -> list[int] | None:
        plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
        for base in (character, plain):
            for form in (base, base.lower(), base.upper(), base.casefold()):
                if form and all(c in self.letters for c in form):
                    return [self.letters[c] for c in form]
        return None
