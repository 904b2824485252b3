"""Languages and speakers of the published `vocoder_v2`, in the order of their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slm.artifact import read_json
from slm.errors import DataError

# Speakers by language, as the checkpoint's model card lists them (ISO 639-3); the first is a language's own voice.
_PUBLISHED = """
arb 0; ben 1; cat 2; ces 3; cmn 4 5; cym 6; dan 7 8; deu 9; eng 10; est 11 12 13; fin 14; fra 15; hin 16;
ind 17 24 18 20 19 21 23 27 26 22 25; ita 29 28; jpn 30; kor 31; mlt 32 33 34; nld 35 37 36; pes 38; pol 39; por 40;
ron 41; rus 43 42; slk 44; spa 45; swe 46 48 47; swh 49 51 50; tel 52; tgl 53; tha 54 57 58 55 56; tur 61 60 59;
ukr 62; urd 63 64 65; uzn 66 67 68; vie 69 70 73 74 71 72
"""
PUBLISHED: dict[str, tuple[int, ...]] = {
    entry.split()[0]: tuple(map(int, entry.split()[1:])) for entry in _PUBLISHED.split(";")
}
"""Language -> its speakers, in the order of the languages' numbers."""


@dataclass(frozen=True)
class Voice:
    """Who speaks: rows of the two embeddings."""

    language: int
    speaker: int


@dataclass(frozen=True)
class Voices:
    """The voices that a vocoder has.

    Attributes:
        languages: language -> its speakers, the first being its own voice; in the order of the languages' numbers.
        speakers: how many speakers the embedding has room for.
    """

    languages: Mapping[str, tuple[int, ...]]
    speakers: int

    @classmethod
    def read(cls, path: str | Path, languages: int, speakers: int) -> Voices:
        """A JSON file {language: [speaker, …]}.

        Raises:
            DataError: not such a file, or numbers that the vocoder has no room for.
        """
        found = read_json(path)
        good = isinstance(found, dict) and all(
            isinstance(numbers, list)
            and numbers
            and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < speakers for n in numbers)
            for numbers in found.values()
        )
        if not good or not found or len(found) > languages:
            raise DataError(
                f"voices are {{language: [speaker, …]}}, at most {languages} languages, speakers below {speakers}",
                where=str(path),
            )
        return cls({name: tuple(numbers) for name, numbers in found.items()}, speakers)

    @classmethod
    def default(cls, languages: int, speakers: int) -> Voices:
        """The published ones where the sizes are theirs; or else languages by number, each with the first speaker."""
        if (languages, speakers) == (len(PUBLISHED), 200):
            return cls(PUBLISHED, speakers)
        return cls({str(number): (0,) for number in range(languages)}, speakers)

    def to_json(self) -> str:
        """What `read` reads."""
        return json.dumps({name: list(numbers) for name, numbers in self.languages.items()}, indent=1) + "\n"

    def choose(self, language: str | None = None, speaker: int | None = None) -> Voice:
        """A voice by language and speaker.

        Args:
            language: default: English where there is English, or else the first language.
            speaker: number of a speaker; default: the language's own.

        Raises:
            DataError: there is none such.
        """
        name = language or ("eng" if "eng" in self.languages else next(iter(self.languages)))
        if name not in self.languages:
            raise DataError(f"the vocoder has no language {name!r}", mend=f"one of {', '.join(self.languages)}")
        number = self.languages[name][0] if speaker is None else speaker
        if not 0 <= number < self.speakers:
            raise DataError(
                f"the vocoder has no speaker {number}",
                mend=f"0 … {self.speakers - 1}; those of {name} are {', '.join(map(str, self.languages[name]))}",
            )
        return Voice(list(self.languages).index(name), number)
