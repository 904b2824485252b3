"""Where the recordings of a job lie: `source:` of unit jobs and codebook fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from slm.config.base import Strict
from slm.config.listing import data_sets_digest, expand, listing_digest, walk

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")

Positive = Annotated[int, Field(gt=0)]
Suffix = Annotated[str, Field(pattern=r"^\.[A-Za-z0-9.]+$")]
Paths = str | list[str]


class _Recordings(Strict):
    """What every source of recordings has."""

    rows: Positive | None = None
    """Read the first so many recordings only; null is all."""

    def fingerprint(self) -> str:
        """Hex sha256 of what is read, from names and sizes alone."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """The settings that decide which recordings there are, and their ids; where files lie is left out."""
        return self.model_dump(mode="json", exclude={"path"})


class FolderRecordings(_Recordings):
    """Every audio file below a folder."""

    kind: Literal["folder"]
    path: str
    """The folder."""
    subsets: list[str] | None = None
    """Folders below it that are read, `train-clean-100`; null is all."""
    suffixes: Annotated[list[Suffix], Field(min_length=1)] = list(AUDIO_SUFFIXES)
    """Files that count as audio; small and capital letters are one."""
    ids: Literal["name", "path"] = "name"
    """What an id is, without suffix: the file's name, as in LibriSpeech; or its path below `path`, as in pairs."""

    def files(self) -> list[Path]:
        """Every audio file, sorted within each subset.

        Raises:
            DataError: no such folder.
        """
        roots = [Path(self.path) / name for name in self.subsets] if self.subsets else [Path(self.path)]
        wanted = {suffix.lower() for suffix in self.suffixes}
        return [path for root in roots for path in walk(root) if path.suffix.lower() in wanted]

    def fingerprint(self) -> str:
        """The audio files."""
        return listing_digest(self.files(), self.path)


class HfRecordings(_Recordings):
    """An audio column of a Hugging Face data set; nothing else of it is read."""

    kind: Literal["hf"]
    path: Paths
    """Hub names, folders, files, or folders of `save_to_disk`."""
    column: str = "audio"
    """Column of the audio: an audio feature, or objects of `bytes`, or of `array` and `sampling_rate`."""
    id: str | None = None
    """Column of ids; null takes the row's number, `row-000000042`."""
    name: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Split."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; a commit makes the set reproducible."""
    streaming: bool = False
    """Read files as they are, without a copy in the cache; a part is then a data file."""

    def paths(self) -> list[str]:
        """The data sets, in order."""
        return [self.path] if isinstance(self.path, str) else self.path

    def fingerprint(self) -> str:
        """Files of local data sets; names and revision of what is on the Hub."""
        return data_sets_digest(self.paths(), self.revision)


class TarRecordings(_Recordings):
    """Audio members of tars, as `webdataset` has them; each is found by its header, nothing is unpacked."""

    kind: Literal["tars"]
    path: Paths
    """Uncompressed tars, or patterns of them."""
    suffixes: Annotated[list[Suffix], Field(min_length=1)] = list(AUDIO_SUFFIXES)
    """Members that count as audio; an id is the member's path up to the first point of its name."""

    def files(self) -> list[Path]:
        """The tars, in order.

        Raises:
            DataError: a path or pattern that names no file.
        """
        return expand(self.path)

    def fingerprint(self) -> str:
        """The tars."""
        return listing_digest(self.files())


Recordings = Annotated[FolderRecordings | HfRecordings | TarRecordings, Field(discriminator="kind")]
