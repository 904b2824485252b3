"""XLS-R units: features after a layer of a wav2vec 2.0 network, the nearest of k centroids.

What the published units need of a wave (seamless_communication's `UnitExtractor`): one more sample, 1.0, where it has
an odd number of them, heard by the normalisation alone; then zero mean and unit variance over the whole utterance.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slm.artifact import canonical_json, file_sha256, read_json, write_json
from slm.config.speech import XlsrConfig
from slm.errors import CheckpointError, DataError
from slm.speech.audio import SAMPLE_RATE, check_wave
from slm.speech.load import SPEECH_FILE
from slm.speech.xlsr_network import NETWORK_CONFIG, Network
from slm.tokens.vocabulary import UnitSet

if TYPE_CHECKING:
    import torch

NETWORK_FOLDER = "xlsr"
WEIGHTS_FILE = "model.safetensors"
CENTROIDS_FILE = "centroids.npy"
NORM_EPS = 1e-5
PADDED = 1.2
"""Seconds through the network, padding included, for a second heard, at most: more costs what batches save."""
DISTANCES = 1 << 25
"""Distances to centroids that are held at once."""


class _Piece(NamedTuple):
    """A stretch of a recording that goes through the network at once.

    Attributes:
        wave: position of its recording.
        start, stop: samples of the recording.
        first, last: its own frames, counted inside the piece; those around them are context.
    """

    wave: int
    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class XlsrFeatures:
    """Features without a codebook: what one is fitted on."""

    config: XlsrConfig
    network: Network

    @classmethod
    def open(cls, config: XlsrConfig, device: str = "auto", dtype: str = "float32") -> XlsrFeatures:
        """Load the network; see `Network.load`."""
        return cls(config, Network.load(config.model, config.layer, device, dtype))

    @property
    def rate_hz(self) -> float:
        """Frames a second."""
        return SAMPLE_RATE / self.network.hop

    @property
    def width(self) -> int:
        """Features of a frame."""
        return self.network.width

    def features(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> list[np.ndarray]:
        """Features of each wave, float32 [frames, width]; 0 frames where it is too short for one.

        Args:
            waves: float32 [samples], mono.
            rate: their sample rate, 16 kHz.

        Raises:
            DataError: a wave is unusable (see `check_wave`); names its position.
        """
        found: list[list[tuple[int, np.ndarray]]] = [[] for _ in waves]
        for wave, start, part in self.parts(waves, rate):
            found[wave].append((start, part.cpu().numpy()))
        nothing = np.zeros((0, self.width), np.float32)
        return [in_order(each, nothing) for each in found]

    def parts(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> Iterator[tuple[int, int, torch.Tensor]]:
        """The same in parts, as they come out of the network: what many hours need.

        Yields:
            Position of the wave, place of the part in it (to sort by), float32 [frames, width] on the device.
        """
        checked = [check_wave(wave, rate, where=f"wave {number} of {len(waves)}") for number, wave in enumerate(waves)]
        normal = [normalise(wave) for wave in checked]
        pieces = [piece for number in range(len(waves)) for piece in self._pieces(number, checked[number])]
        for batch in self._batches(pieces):
            parts = self.network.run(
                [normal[piece.wave][piece.start : piece.stop] for piece in batch],
                [min(piece.stop, len(checked[piece.wave])) - piece.start for piece in batch],
            )
            for piece, part in zip(batch, parts, strict=True):
                yield piece.wave, piece.start, part[piece.first : piece.last]

    def _pieces(self, number: int, wave: np.ndarray) -> Iterator[_Piece]:
        """A recording whole, or, where it is longer than a chunk, in equal shares with context; by its length alone."""
        hop, field = self.network.hop, self.network.field
        if not self.network.frames(len(wave)):
            return
        frames = self.network.frames(len(wave) + len(wave) % 2)
        chunk, context = (int(seconds * self.rate_hz) for seconds in (self.config.chunk_s, self.config.context_s))
        shares = 1 if frames <= chunk else -(-frames // (chunk - 2 * context))
        share = -(-frames // shares)
        for first in range(0, frames, share):
            last = min(first + share, frames)
            begin, end = (max(0, first - context), min(frames, last + context)) if shares > 1 else (first, last)
            yield _Piece(number, begin * hop, (end - 1) * hop + field, first - begin, last - begin)

    def _batches(self, pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
        """Pieces of similar length, so many that they fit in `batch_s` with their padding, of which there is little."""
        room, heard = self.config.batch_s * SAMPLE_RATE, 0
        batch: list[_Piece] = []
        for piece in sorted(pieces, key=lambda piece: (piece.start - piece.stop, piece.wave, piece.start)):
            length = piece.stop - piece.start
            padded = (batch[0].stop - batch[0].start) * (len(batch) + 1) if batch else 0
            if padded > min(room, PADDED * (heard + length)):
                yield batch
                batch, heard = [], 0
            batch.append(piece)
            heard += length
        if batch:
            yield batch

    def save(self, folder: str | Path, centroids: np.ndarray, vocoder: str | None = None) -> XlsrKMeans:
        """Write a speech artifact's files: the cut network, the centroids, `speech.json`.

        Args:
            folder: existing; may be the one that holds the network already.
            centroids: float [units, width].
            vocoder: name of the vocoder whose files are there too.

        Raises:
            DataError: centroids of another width, or none.
            CheckpointError: the network has weights in a form that is not read.
            MachineError: no space or no permission.
        """
        folder = Path(folder)
        points = require_centroids(centroids, self.width, str(folder))
        target = folder / NETWORK_FOLDER
        if Path(self.config.model).resolve() != target.resolve():
            from slm.speech.xlsr_files import copy_network

            copy_network(self.config.model, target, self.config.layer)
        with open(folder / CENTROIDS_FILE, "wb") as file:
            np.save(file, points)
        config = self.config.model_copy(update={"model": NETWORK_FOLDER})
        codebook = XlsrKMeans(XlsrFeatures(config, self.network), points, identity_of(folder, config, points))
        about = {
            "extractor": codebook.name,
            "vocoder": vocoder,
            "units": vars(codebook.unit_set),
            "config": config.model_dump(mode="json"),
        }
        write_json(folder / SPEECH_FILE, about)
        return codebook


@dataclass(frozen=True)
class XlsrKMeans:
    """Units of an XLS-R; implements `Extractor`.

    Attributes:
        source: the features.
        centroids: float32 [count, width].
        identity: hex sha256 of the network's weights and shape, layer, chunks and centroids.
    """

    source: XlsrFeatures
    centroids: np.ndarray
    identity: str

    name = "xlsr_kmeans"

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", dtype: str = "float32") -> XlsrKMeans:
        """Read a speech artifact's folder.

        Args:
            folder: what `XlsrFeatures.save` wrote.
            device, dtype: see `Network.load`. Units of lower precision are those of float32 but for a few frames
                that lie between two centroids.

        Raises:
            DataError: missing or damaged files, or a codebook of another width than the network's.
            CheckpointError, MachineError: see `Network.load`.
        """
        folder = Path(folder)
        about = read_json(folder / SPEECH_FILE)
        try:
            config = XlsrConfig.model_validate(about["config"])
            points = np.load(folder / CENTROIDS_FILE, allow_pickle=False)
        except FileNotFoundError:
            raise DataError("codebook not found", where=str(folder / CENTROIDS_FILE)) from None
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"the codebook can't be read: {error}", where=str(folder)) from None
        network = Network.load(folder / config.model, config.layer, device, dtype)
        points = require_centroids(points, network.width, str(folder / CENTROIDS_FILE))
        return cls(XlsrFeatures(config, network), points, identity_of(folder, config, points))

    @property
    def rate_hz(self) -> float:
        """Units a second."""
        return self.source.rate_hz

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.centroids)

    @property
    def unit_set(self) -> UnitSet:
        """The units as vocabularies describe them."""
        config = self.source.config
        return UnitSet(self.count, self.rate_hz, self.name, self.identity, config.input, config.output)

    def features(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> list[np.ndarray]:
        """See `XlsrFeatures.features`."""
        return self.source.features(waves, rate)

    def units(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> list[np.ndarray]:
        """See `Extractor.units`; a wave that is too short for one unit has none."""
        found: list[list[tuple[int, np.ndarray]]] = [[] for _ in waves]
        for wave, start, part in self.source.parts(waves, rate):
            found[wave].append((start, self._nearest(part)))
        return [in_order(each, np.zeros(0, np.int32)) for each in found]

    @cached_property
    def _points(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Centroids and their squared lengths, where the features are."""
        import torch

        points = torch.from_numpy(self.centroids).to(self.source.network.device)
        return points, (points**2).sum(dim=1)

    def _nearest(self, features: torch.Tensor) -> np.ndarray:
        """Index of the nearest centroid by Euclidean distance, int32 [frames]."""
        import torch

        points, norms = self._points
        with torch.inference_mode():
            parts = [
                torch.argmin(norms - 2.0 * (part @ points.T), dim=1).int()
                for part in features.split(max(1, DISTANCES // len(points)))
            ]
            return torch.cat(parts).cpu().numpy()


def in_order(parts: Sequence[tuple[int, np.ndarray]], nothing: np.ndarray) -> np.ndarray:
    """Parts of a recording, each with its place, joined; `nothing` where there are none."""
    return np.concatenate([nothing, *(part for _, part in sorted(parts, key=lambda part: part[0]))])


def normalise(wave: np.ndarray) -> np.ndarray:
    """A wave as the network hears it, float32, of even length: see the module docstring."""
    even = np.append(wave, np.float32(1.0)) if len(wave) % 2 else wave
    centred = even - np.float32(even.mean(dtype=np.float64))
    power = np.square(centred).mean(dtype=np.float64)
    return centred / np.float32(np.sqrt(power + NORM_EPS))


def require_centroids(centroids: np.ndarray, width: int, where: str) -> np.ndarray:
    """Centroids as float32 [count, width].

    Raises:
        DataError: not such an array, of another width, or not finite.
    """
    if centroids.ndim != 2 or not len(centroids) or not np.issubdtype(centroids.dtype, np.floating):
        raise DataError(
            f"centroids have shape {centroids.shape} {centroids.dtype}, need float [units, width]", where=where
        )
    if centroids.shape[1] != width:
        raise DataError(
            f"the codebook has width {centroids.shape[1]}, the network {width}",
            where=where,
            mend="take the codebook that was fitted on this network",
        )
    points = np.ascontiguousarray(centroids, np.float32)
    if not np.isfinite(points).all():
        raise DataError("centroids are not finite", where=where)
    return points


def identity_of(folder: Path, config: XlsrConfig, centroids: np.ndarray) -> str:
    """Hex sha256 of everything that decides which unit a sound becomes; reads the weights file once.

    Raises:
        CheckpointError: the weights are missing.
    """
    network = folder / config.model
    if not (network / WEIGHTS_FILE).is_file():
        raise CheckpointError("weights are missing", where=str(network / WEIGHTS_FILE))
    shape = read_json(network / NETWORK_CONFIG)
    decides = {
        "extractor": XlsrKMeans.name,
        **config.model_dump(mode="json", include={"layer", "chunk_s", "context_s"}),
        "heads": shape.get("num_attention_heads"),
        "stride": shape.get("conv_stride"),
        "weights": file_sha256(network / WEIGHTS_FILE),
        "centroids": list(centroids.shape),
    }
    return hashlib.sha256(canonical_json(decides).encode() + np.ascontiguousarray(centroids).tobytes()).hexdigest()
