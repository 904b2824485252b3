"""Configuration of a shard-building job (`data_shards/jobs/*.yaml` with `job: shards`)."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from slm.artifact import digest, find_manifest, read_manifest
from slm.config.base import Job, Strict
from slm.config.interleave import InterleaveConfig, WordsSchedule
from slm.config.listing import data_sets_digest, expand, files_digest, listing_digest, walk

TOKENIZER_FILES = ("tokenizer.json", "vocabulary.json", "tokenizer_config.json", "chat_template.jinja")
"""What decides which ids a text becomes."""
SHARDS, COLD_SHARDS = "shards", "cold-shards"
"""Kinds of artifact: a shard set, and one whose shards are compressed."""
AS_TOKENIZER = "as_tokenizer"
"""Stands for the codebook that the tokenizer's `vocabulary.json` names."""
MAX_NUMBERS = 100_000
SPOKEN = ("asr", "tts")
"""Recipes that a recording with its transcript is enough for."""

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")

Positive = Annotated[int, Field(gt=0)]
Repeats = Literal["kept", "removed"]
Paths = str | list[str]


def _numbers(value: Any) -> Any:
    """`0-9`, `0-3, 7`, 5 or a list of such as a list of numbers; anything else is left for the schema to refuse."""
    if isinstance(value, bool) or not isinstance(value, int | str | list):
        return value
    found: list[int] = []
    for item in value if isinstance(value, list) else [value]:
        for text in str(item).split(","):
            match = _RANGE.fullmatch(text.strip())
            if match is None:
                raise ValueError(f"expected numbers or ranges such as 0-9, got {item!r}")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or last - first >= MAX_NUMBERS:
                raise ValueError(f"the range {text.strip()} runs backwards or is too long")
            found += range(first, last + 1)
    return found


Numbers = Annotated[list[int], BeforeValidator(_numbers), Field(min_length=1)]


class UnitsConfig(Strict):
    """What the speech units of the data are: declared, compared with the tokenizer and the extractor, never guessed."""

    count: Positive
    """Number of different units."""
    rate_hz: Annotated[float, Field(gt=0)]
    """Units a second, before repeats are removed."""
    extractor: Annotated[str, Field(min_length=1)]
    """Name of the extractor."""
    codebook: Annotated[str, Field(pattern=rf"^([0-9a-f]{{64}}|{AS_TOKENIZER})$")]
    """sha256 of the codebook in hex; `as_tokenizer` takes the tokenizer's word for data that does not carry it."""
    input: Repeats
    """Repeats of a unit in questions."""
    output: Repeats
    """Repeats of a unit in answers."""


class _Source(Strict):
    """What every source has."""

    rows: Positive | None = None
    """Read the first so many rows only; null is all."""

    def fingerprint(self) -> str:
        """Hex sha256 of what is read, from names and sizes alone."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """The settings that decide which rows come out; where files lie is left out."""
        return self.model_dump(mode="json", exclude={"path", "transcripts", "alignments", "speech"})


class _Table(_Source):
    """Rows that have a recipe's columns."""

    rename: dict[str, str] = {}
    """Column of the data -> column of the recipe, where the names differ."""
    leave_out: dict[str, list[str]] | None = None
    """Column -> values; a row that has one of them is left out and counted."""
    wording: Literal["column", "by_row"] | None = None
    """Instructions: as the rows have them, or the recipe's own wordings in turn; null is `column`, for tts `by_row`."""


class HfSource(_Table):
    """A Hugging Face data set: Hub name, local folder, or folder of `save_to_disk`. Columns that no recipe reads are
    never decoded."""

    kind: Literal["hf"]
    path: str
    """Hub name or folder; `{rank}` and `{chunk}` in it are filled in by `ranks` and `chunks`."""
    ranks: Numbers | None = None
    """Values of `{rank}`: numbers and ranges, `0-3`."""
    chunks: Numbers | None = None
    """Values of `{chunk}`: numbers and ranges, `0-9`."""
    name: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Split."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; a commit makes the set reproducible."""
    streaming: bool = False
    """Read files as they are, without a copy in the cache; a part is then a data file."""

    @model_validator(mode="after")
    def _fills_in(self) -> HfSource:
        for key in ("rank", "chunk"):
            if (f"{{{key}}}" in self.path) != (getattr(self, f"{key}s") is not None):
                raise ValueError(f"path and {key}s go together: {{{key}}} in the path is filled in by {key}s")
        if self.streaming and self.rows is not None:
            raise ValueError("rows needs a data set of known size: streaming: false")
        return self

    def paths(self) -> list[str]:
        """The path, or each that ranks and chunks make of it: by rank, then by chunk."""
        numbers = product(self.ranks or [0], self.chunks or [0])
        pairs = [self.path.replace("{rank}", str(r)).replace("{chunk}", str(c)) for r, c in numbers]
        return list(dict.fromkeys(pairs))

    def fingerprint(self) -> str:
        """Files of local folders; names and revision of what is on the Hub."""
        return data_sets_digest(self.paths(), self.revision)


class JsonlSource(_Table):
    """Files of one JSON object a line."""

    kind: Literal["jsonl"]
    path: Paths
    """Files or glob patterns."""

    def fingerprint(self) -> str:
        """The files."""
        return listing_digest(expand(self.path))


class ParquetSource(_Table):
    """Parquet files; columns that no recipe reads are not read."""

    kind: Literal["parquet"]
    path: Paths
    """Files or glob patterns."""

    def fingerprint(self) -> str:
        """The files."""
        return listing_digest(expand(self.path))


Layout = Literal["librispeech", "pairs", "jsonl"]


class _Spoken(_Source):
    """Utterances: a transcript each, and for speaking when each word is said."""

    layout: Layout = "librispeech"
    """How transcripts lie: `SPEAKER/CHAPTER/*.trans.txt`; `NAME.txt` for each `NAME`; `*.jsonl` of `id` and `text`."""
    subsets: list[str] | None = None
    """Folders below the transcripts that are read, `train-clean-100`; null is all."""
    case: Literal["keep", "lower"] = "keep"
    """Letters of transcripts and aligned words; LibriSpeech has capitals only."""
    alignments: str | None = None
    """Folder of word alignments (TextGrid, CTM, JSON), found by utterance id; needed by tts."""
    interleave: InterleaveConfig = WordsSchedule()
    """How words and units share the stream in tts; by default every word is followed by its units."""

    def _listing(self, folder: str) -> str:
        roots = [Path(folder) / name for name in self.subsets] if self.subsets else [Path(folder)]
        return listing_digest([path for root in roots for path in walk(root)], folder)


class AudioSource(_Spoken):
    """Recordings and transcripts, through the extractor of a speech artifact."""

    kind: Literal["audio"]
    path: str
    """Folder of the recordings and their transcripts."""
    speech: str
    """Speech artifact whose extractor makes the units."""
    batch: Positive = 16
    """Recordings that the extractor gets at a time; changes no byte."""

    def identity(self) -> dict[str, Any]:
        """Without `batch`: a wave's units do not depend on the others."""
        return {key: value for key, value in super().identity().items() if key != "batch"}

    def fingerprint(self) -> str:
        """Recordings, transcripts and alignments."""
        aligned = listing_digest(walk(self.alignments), self.alignments) if self.alignments else None
        return digest([self._listing(self.path), aligned])


class UnitsSource(_Spoken):
    """Units that were extracted already, and transcripts."""

    kind: Literal["units"]
    path: Paths
    """Files of `{"id": …, "units": […]}` lines or glob patterns; or a folder: a unit set, its `*.jsonl`, or an `ID.npy`
    each."""
    transcripts: str
    """Folder of the transcripts."""

    def fingerprint(self) -> str:
        """Units, transcripts and alignments."""
        folder = self.path if isinstance(self.path, str) and Path(self.path).is_dir() else None
        made = find_manifest(folder) if folder is not None else None
        if made is not None:  # a unit set of ours says what it is
            units = made.fingerprint
        else:
            units = listing_digest(walk(folder), folder) if folder is not None else listing_digest(expand(self.path))
        aligned = listing_digest(walk(self.alignments), self.alignments) if self.alignments else None
        return digest([units, self._listing(self.transcripts), aligned])


Source = Annotated[HfSource | JsonlSource | ParquetSource | AudioSource | UnitsSource, Field(discriminator="kind")]


class ShardsJob(Job):
    """Build one shard set of one recipe from one source."""

    ignored: ClassVar[tuple[str, ...]] = ("job", "workers", "tokenizer", "source", "compress")

    job: Literal["shards"]
    """Which job this file configures."""
    recipe: Literal["llm", "asr", "tts", "sqa"]
    """How a row becomes a prompt and an answer."""
    tokenizer: str
    """Folder of the model's tokenizer; one without units gets those that `units` declares, as `model expand` does."""
    source: Source
    """Where rows come from."""
    units: UnitsConfig | None = None
    """The units of the data; every recipe but llm has them."""
    max_length: Annotated[int, Field(ge=16)] = 4096
    """Tokens of a sample at most."""
    overlong: Literal["drop", "split_at_segment", "truncate_target"] | None = None
    """Longer samples: left out; cut between two words of the answer into samples of their own (tts); or cut at the
    end. null is `drop`, and an error when it is more than 1 % of the examples."""
    group: Positive = 256
    """Samples of a group; 1 gives stock readers one sample per key."""
    part: Positive = 16_384
    """Examples of a part. A part is built by one process, has shards of its own, and is what a killed build keeps."""
    shard_mib: Annotated[int, Field(ge=1, le=8192)] = 256
    """A shard is closed when it has reached so many MiB."""
    compress: Literal["zstd"] | None = None
    """For cold storage: shards as `.tar.zst`. Training reads what `slm data unpack` makes of them."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processes side by side; null: one per processor, or per GPU where an extractor needs one. Changes no byte."""

    @model_validator(mode="after")
    def _fits(self) -> ShardsJob:
        if (self.units is None) != (self.recipe == "llm"):
            wanted = "must not have units" if self.recipe == "llm" else "needs units: what the units of its data are"
            raise ValueError(f"recipe {self.recipe} {wanted}")
        if self.overlong == "split_at_segment" and self.recipe != "tts":
            raise ValueError(
                f"overlong: split_at_segment is for tts; cut in two, the answer of {self.recipe} fits no prompt"
            )
        if isinstance(self.source, AudioSource | UnitsSource):
            if self.recipe not in SPOKEN:
                raise ValueError(f"source: {self.source.kind} has the columns of asr and tts, not of {self.recipe}")
            if self.recipe == "tts" and self.source.alignments is None:
                raise ValueError("source: tts needs alignments: which units belong to which word")
        return self

    @property
    def kind(self) -> str:  # type: ignore[override]
        """`shards`, or what has to be unpacked before it is."""
        return COLD_SHARDS if self.compress else SHARDS

    def inputs(self) -> dict[str, str]:
        """The speech artifact of recordings."""
        return {"speech": self.source.speech} if isinstance(self.source, AudioSource) else {}

    def fingerprints(self) -> dict[str, str]:
        """Tokenizer and source by their files, and the speech artifact."""
        found = {name: read_manifest(folder).fingerprint for name, folder in self.inputs().items()}
        found["tokenizer"] = files_digest(self.tokenizer, TOKENIZER_FILES)
        found["source"] = self.source.fingerprint()
        return found

    def identity(self) -> dict[str, Any]:
        """The settings that change bytes."""
        return super().identity() | {"source": self.source.identity()}
