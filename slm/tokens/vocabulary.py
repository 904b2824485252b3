"""Speech units as tokens: how they are written, where their ids lie, and what makes two vocabularies equal.

The only file that knows that unit 7 is written `<|7|>` and that its id is `first_unit + 7`. A
vocabulary's *fingerprint* covers the text tokenizer, its chat template, the unit range, extractor,
codebook, rate and repeat policy (design §4); shards and models carry it and are compared before any work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifact import canonical_json, digest, read_json, write_json
from slm.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_FILE = "vocabulary.json"
REPEATS = ("kept", "removed")
UNIT_RUN = re.compile(r"(?:<\|(?:0|[1-9][0-9]*)\|>)+")
"""Units without anything between them."""
_UNIT = re.compile(r"<\|(0|[1-9][0-9]*)\|>")
_ID_SECTIONS = ("model", "normalizer", "pre_tokenizer")


def unit_token(u: int) -> str:
    """The token of unit `u`: `7` -> `<|7|>`."""
    return f"<|{u}|>"


def units_to_text(units: Iterable[int]) -> str:
    """Units written as text, without separators: `[5, 9]` -> `<|5|><|9|>`."""
    text = "|><|".join(map(str, units))  # a build writes millions: three times as fast as a token at a time
    return f"<|{text}|>" if text else ""


def text_to_units(text: str) -> list[int]:
    """The units in a text, in order; everything else is passed over."""
    return [int(u) for u in _UNIT.findall(text)]


def strip_units(text: str) -> str:
    """The text with its unit tokens taken out; not a space more."""
    return _UNIT.sub("", text)


def split_runs(text: str) -> list[tuple[str, list[int]]]:
    """The text cut where a unit run ends: (text, the units after it) pairs, in order."""
    pairs: list[tuple[str, list[int]]] = []
    end = 0
    for match in _UNIT.finditer(text):
        between = text[end : match.start()]
        if between or not pairs:
            pairs.append((between, []))
        pairs[-1][1].append(int(match[1]))
        end = match.end()
    if text[end:]:
        pairs.append((text[end:], []))
    return pairs


def remove_repeats(units: Iterable[int]) -> list[int]:
    """Runs of the same unit become one: `[3, 3, 1, 3]` -> `[3, 1, 3]`."""
    return [int(unit) for unit, _ in groupby(units)]


@dataclass(frozen=True)
class UnitSet:
    """What speech units are, apart from where their ids lie.

    Attributes:
        count: number of different units.
        rate_hz: units a second, before repeats are removed.
        extractor: name of the extractor.
        codebook: hex sha256 of the codebook.
        input, output: `kept` or `removed`: what happens to repeats in questions and in answers.
    """

    count: int
    rate_hz: float
    extractor: str
    codebook: str
    input: str = "kept"
    output: str = "removed"

    def __post_init__(self) -> None:
        if self.count < 1 or self.rate_hz <= 0:
            raise DataError(f"a unit set needs count >= 1 and rate_hz > 0, not {self.count} and {self.rate_hz}")
        for role in (self.input, self.output):
            if role not in REPEATS:
                raise DataError(f"repeats are 'kept' or 'removed', not {role!r}")

    def for_role(self, units: Sequence[int], role: str) -> list[int]:
        """Raw units as the role (`input` or `output`) wants them."""
        policy = {"input": self.input, "output": self.output}[role]
        return remove_repeats(units) if policy == "removed" else list(map(int, units))


@dataclass(frozen=True)
class Vocabulary:
    """Which ids mean what.

    Attributes:
        text_sha256: hash of the tokenizer without its unit tokens; equal before and after `add_units`.
        size: number of tokens, units included.
        first_unit: id of unit 0, None without units.
        units: what the units are, None without units.
    """

    text_sha256: str
    size: int
    first_unit: int | None = None
    units: UnitSet | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of everything above."""
        return digest(self.to_json())

    @property
    def text_size(self) -> int:
        """Number of tokens that are no units."""
        return self.size - (self.units.count if self.units else 0)

    def is_unit(self, token: int) -> bool:
        """Whether a token id is a speech unit."""
        if self.units is None or self.first_unit is None:
            return False
        return self.first_unit <= token < self.first_unit + self.units.count

    def to_ids(self, units: Iterable[int]) -> list[int]:
        """Token ids of units.

        Raises:
            DataError: no units in this vocabulary, or a unit outside its range.
        """
        units = [int(u) for u in units]
        if self.units is None or self.first_unit is None:
            raise DataError("this vocabulary has no speech units", mend="expand the model: slm model expand")
        if units and not (min(units) >= 0 and max(units) < self.units.count):
            raise DataError(
                f"units {min(units)}..{max(units)} do not fit a unit set of {self.units.count}",
                mend="extract the units with the extractor and codebook of this vocabulary",
            )
        return [self.first_unit + u for u in units]

    def to_units(self, ids: Iterable[int]) -> list[int]:
        """The units among token ids, in order; other tokens are passed over."""
        first = self.first_unit or 0
        return [int(token) - first for token in ids if self.is_unit(int(token))]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `vocabulary.json` and manifests hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Vocabulary:
        """The inverse of `to_json`.

        Raises:
            DataError: not such an object.
        """
        try:
            units = UnitSet(**value["units"]) if value.get("units") else None
            return cls(value["text_sha256"], value["size"], value["first_unit"], units)
        except (KeyError, TypeError) as error:
            raise DataError(f"not a vocabulary description: {error}") from None


def require_same_vocabulary(data: Vocabulary, model: Vocabulary, where: str) -> None:
    """Data and model must mean the same by every id that the data can hold.

    Data without units only needs the same text part, so text shards train a model with units too.

    Raises:
        DataError: names what differs.
    """
    if data.text_sha256 != model.text_sha256:
        raise DataError(
            f"made with another tokenizer or chat template ({data.text_sha256[:12]}, model {model.text_sha256[:12]})",
            where=where,
            mend="build the data with the model's own tokenizer",
        )
    if data.units is None:
        return
    if model.units is None:
        raise DataError("the data holds speech units and the model has none", where=where, mend="slm model expand")
    if data.fingerprint != model.fingerprint:
        ours, theirs = data.to_json(), model.to_json()
        pairs = {k: (ours[k], theirs[k]) for k in ("size", "first_unit")}
        pairs |= {k: (ours["units"][k], theirs["units"][k]) for k in ours["units"]}
        differs = ", ".join(f"{k}: data {a}, model {b}" for k, (a, b) in pairs.items() if a != b)
        raise DataError(
            f"speech units differ ({differs})", where=where, mend="use units of the extractor the model was trained on"
        )


def text_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hex sha256 of what turns text into ids: model, pre-tokenizer, added tokens but units, chat template."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [token for token in state["added_tokens"] if not _UNIT.fullmatch(token["content"])]
    part = {name: state.get(name) for name in _ID_SECTIONS}
    part |= {"added_tokens": added, "chat_template": tokenizer.chat_template}
    return hashlib.sha256(canonical_json(part).encode()).hexdigest()


def text_vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """The vocabulary of a tokenizer that has no units.

    Raises:
        DataError: it has unit tokens; their `UnitSet` can't be known from the tokenizer alone.
    """
    if _unit_ids(tokenizer):
        raise DataError("this tokenizer has unit tokens already", mend="load it with its vocabulary.json")
    return Vocabulary(text_hash(tokenizer), len(tokenizer))


def add_units(tokenizer: PreTrainedTokenizerFast, units: UnitSet) -> Vocabulary:
    """Add `<|0|>` … `<|n-1|>` as contiguous special tokens, in place.

    They strip no whitespace and are never normalised, so text around them keeps its tokens.

    Raises:
        DataError: the tokenizer has unit tokens already, or they would not be contiguous.
    """
    from tokenizers import AddedToken

    text = text_vocabulary(tokenizer)
    tokens = [
        AddedToken(unit_token(u), single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for u in range(units.count)
    ]
    tokenizer.add_tokens(tokens, special_tokens=True)
    first = tokenizer.convert_tokens_to_ids(unit_token(0))
    last = tokenizer.convert_tokens_to_ids(unit_token(units.count - 1))
    if first != text.size or last != first + units.count - 1 or len(tokenizer) != last + 1:
        raise DataError(
            f"the {units.count} unit tokens got ids {first}..{last}, not {text.size}..{text.size + units.count - 1}",
            mend="use a tokenizer whose ids have no gaps",
        )
    return Vocabulary(text.text_sha256, len(tokenizer), first, units)


def without_units(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer that lacks the unit tokens: the text part by itself."""
    return _without(tokenizer, lambda token: _UNIT.fullmatch(token["content"]) is not None)


def without_ids_from(tokenizer: PreTrainedTokenizerFast, size: int) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer that lacks the added tokens whose ids are `size` or more."""
    return _without(tokenizer, lambda token: token["id"] >= size)


def _without(tokenizer: PreTrainedTokenizerFast, drop: Callable[[Any], bool]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not drop(token)]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    text = type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), clean_up_tokenization_spaces=False, **special
    )
    text.chat_template = tokenizer.chat_template
    return text


def save_tokenizer(folder: str | Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    """Write the tokenizer as transformers does, and `vocabulary.json` beside it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    write_json(Path(folder) / VOCABULARY_FILE, vocabulary.to_json())


def load_tokenizer(folder: str | Path) -> tuple[PreTrainedTokenizerFast, Vocabulary]:
    """Read what `save_tokenizer` wrote; a folder without `vocabulary.json` is a plain text tokenizer.

    Raises:
        DataError: no tokenizer there, or it is not the one that `vocabulary.json` describes.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise DataError("no tokenizer.json here", where=str(folder))
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), clean_up_tokenization_spaces=False)
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer can't be read: {error}", where=str(folder)) from None
    if not (folder / VOCABULARY_FILE).is_file():
        return tokenizer, text_vocabulary(tokenizer)
    vocabulary = Vocabulary.from_json(read_json(folder / VOCABULARY_FILE))
    found = _unit_ids(tokenizer)
    count = vocabulary.units.count if vocabulary.units else 0
    first = vocabulary.first_unit or 0
    if text_hash(tokenizer) != vocabulary.text_sha256 or found != list(range(first, first + count)):
        raise DataError(
            "vocabulary.json describes another tokenizer",
            where=str(folder),
            mend="save both with save_tokenizer; do not edit either by hand",
        )
    return tokenizer, vocabulary


def _unit_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    added = tokenizer.added_tokens_decoder.items()
    return sorted(token for token, entry in added if _UNIT.fullmatch(entry.content))
