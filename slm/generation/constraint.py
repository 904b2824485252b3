"""Which tokens may come next, so that an answer has the form of its stage.

Well-formed means what `interleaving_faults` finds nothing in: words before their units, units at the end, no text
left unspoken; with repeats removed no unit twice in a row. A spoken answer has three parts, of which the first two
hold no units. The grammar follows the schedules `words` and `tokens`, in which words precede the units that speak
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from slm.errors import DataError
from slm.stages import Form
from slm.stages.sqa import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedTokenizerFast

    from slm.tokens.vocabulary import Vocabulary

PARTS: dict[Form, tuple[str, ...]] = {
    "text": ("text",),
    "interleaved": ("woven",),
    "spoken_answer": ("text", "text", "woven"),
}
_KINDS = ("opening", "text", "text_or_stop", "woven", "woven_or_stop", "units", "units_or_stop")
"""Sets of tokens between which the state chooses; see `Constraint._sets`."""


@dataclass(frozen=True)
class State:
    """Where in an answer the next token stands.

    Attributes:
        part: index into the form's parts.
        blank: nothing but white space has been said in this part.
        newlines: line feeds at the end of the text so far that may belong to a separator.
        unit: id of the unit token that came last; -1 after text.
    """

    part: int = 0
    blank: bool = True
    newlines: int = 0
    unit: int = -1


class Constraint:
    """The grammar of one form over one vocabulary.

    Args:
        form: of the answers.
        tokenizer: decides what a token is in text.
        vocabulary: where its units lie.
        stop: ids that end an answer.

    Attributes:
        size: number of tokens.
        start: the state before the first token.

    Raises:
        DataError: the form has units and the vocabulary none.
    """

    def __init__(
        self, form: Form, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, stop: Collection[int]
    ) -> None:
        if vocabulary.units is None and form != "text":
            raise DataError("the model has no speech units to answer in", mend="give a model that was trained to speak")
        self.parts, self.size, self.start = PARTS[form], vocabulary.size, State()
        self._vocabulary, self._stop = vocabulary, frozenset(stop)
        self._no_repeats = vocabulary.units is not None and vocabulary.units.output == "removed"
        everything = [[token] for token in range(vocabulary.size)]
        self._pieces = tokenizer.backend_tokenizer.decode_batch(everything, skip_special_tokens=False)
        special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
        self._tokens = self._sets(special)

    def _sets(self, special: Collection[int]) -> torch.Tensor:
        """Bool [kinds, vocabulary]: which tokens each of `_KINDS` allows."""
        size = self._vocabulary.size
        plain, units, stop = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
        newlines, empty = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.bool)
        for token in range(size):
            if self._vocabulary.is_unit(token):
                units[token] = True
            elif token in self._stop:
                stop[token] = True
            elif token not in special:
                plain[token] = True
                newlines[token] = self._pieces[token].count("\n")
                empty[token] = not self._pieces[token].strip()
        # Two line feeds in one token make a separator; more of them could make a part of nothing.
        text = plain & (newlines <= len(SEPARATOR))
        opening = plain & ~empty & (newlines == 0)
        found = {
            "opening": opening,
            "text": text,
            "text_or_stop": plain | stop,
            "woven": plain | units,
            "woven_or_stop": plain | units | stop,
            "units": units,
            "units_or_stop": units | stop,
        }
        return torch.stack([found[kind] for kind in _KINDS])

    def after(self, state: State, token: int) -> State:
        """The state when `token` has been said."""
        if self._vocabulary.is_unit(token):
            return State(state.part, state.blank, 0, token)
        part, blank, newlines = state.part, state.blank, state.newlines
        for character in self._pieces[token]:
            newlines = newlines + 1 if character == "\n" else 0
            blank = blank and character.isspace()
            if newlines == len(SEPARATOR) and part < len(self.parts) - 1 and not blank:
                part, blank, newlines = part + 1, True, 0
        return State(part, blank, newlines)

    def allowed(self, states: Sequence[State], left: Sequence[int], device: torch.device) -> torch.Tensor:
        """Which tokens may follow.

        Args:
            states: of each row.
            left: tokens that each row may still say; the last one of a spoken part is a unit.

        Returns:
            Bool [rows, vocabulary]; every row has a token.
        """
        if self._tokens.device != device:
            self._tokens = self._tokens.to(device)
        kinds = [self._kind(state, rest) for state, rest in zip(states, left, strict=True)]
        mask = self._tokens[torch.tensor(kinds, device=device)]
        if self._no_repeats:
            rows = [(row, state.unit) for row, state in enumerate(states) if state.unit >= 0]
            if rows:
                places = torch.tensor(rows, device=device)
                mask[places[:, 0], places[:, 1]] = False
        return mask

    def _kind(self, state: State, left: int) -> int:
        last = state.part == len(self.parts) - 1
        if state.blank:
            kind = "opening"
        elif self.parts[state.part] == "text":
            kind = "text_or_stop" if last else "text"
        elif state.unit >= 0:
            kind = "woven_or_stop" if left > 1 else "units_or_stop"
        else:
            kind = "woven" if left > 1 else "units"
        return _KINDS.index(kind)
