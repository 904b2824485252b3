"""The offline extractor: log-mel or cepstral frames, their neighbours, the nearest of k centroids."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from slm.artifact import canonical_json, read_json, write_atomic, write_json
from slm.config.speech import MelKMeansConfig
from slm.errors import DataError
from slm.speech.audio import SAMPLE_RATE, check_wave
from slm.speech.load import SPEECH_FILE
from slm.tokens.vocabulary import UnitSet

CODEBOOK_FILE = "codebook.npz"
ARRAYS = ("projection", "centroids", "mel", "durations")
POWER_FLOOR = 1e-7
"""Added to mel power (1 = a full-scale sine) before the logarithm: -70 dB, below any speech."""
BATCH_SAMPLES = 1 << 21
"""Waves are analysed joined together, up to this many samples at a time."""


@dataclass(frozen=True)
class MelKMeans:
    """A fitted codebook; implements `Extractor`.

    Attributes:
        config: how frames are made.
        projection: float32 [width, dimensions], applied to features before distances are taken: their scale, or
            the discriminants.
        centroids: float32 [count, dimensions].
        mel: float32 [count, mel_bands], mean log-mel power of each unit at its absolute level.
        durations: float32 [count], mean length of a run of each unit, in unit periods.
    """

    config: MelKMeansConfig
    projection: np.ndarray
    centroids: np.ndarray
    mel: np.ndarray
    durations: np.ndarray

    name = "mel_kmeans"

    @property
    def rate_hz(self) -> float:
        """Units a second."""
        return self.config.rate_hz

    @property
    def count(self) -> int:
        """Number of units."""
        return self.config.count

    @cached_property
    def identity(self) -> str:
        """Hex sha256 of configuration and arrays."""
        hashed = hashlib.sha256(canonical_json(self.config.model_dump(mode="json")).encode())
        for array in (getattr(self, name) for name in ARRAYS):
            hashed.update(canonical_json(array.shape).encode() + np.ascontiguousarray(array, np.float32).tobytes())
        return hashed.hexdigest()

    @property
    def unit_set(self) -> UnitSet:
        """The units as vocabularies describe them."""
        return UnitSet(self.count, self.rate_hz, self.name, self.identity, self.config.input, self.config.output)

    @classmethod
    def fit(
        cls,
        waves: Sequence[np.ndarray],
        config: MelKMeansConfig,
        voice: Sequence[np.ndarray] | None = None,
        labels: Sequence[np.ndarray] | None = None,
    ) -> MelKMeans:
        """Learn units from waves, and how they sound and how long they last.

        Args:
            waves: float32 [samples], 16 kHz, mono.
            config: number of units, features, seed.
            voice: waves whose sound and durations the vocoder takes on; None takes all `waves`.
            labels: what is said in each unit period of each wave, int [units]; needed for discriminants only.

        Raises:
            DataError: fewer different frames than units, an unusable wave, or labels that are missing or do not fit.
        """
        from sklearn.cluster import MiniBatchKMeans

        logs = log_mels(waves, config)
        frames = [features(log, config) for log in logs]
        chance = np.random.default_rng(config.seed)
        everything = np.concatenate(frames) if frames else np.zeros((0, config.width), np.float32)
        chosen = np.arange(len(everything))
        if len(everything) > config.fit_frames:
            chosen = np.sort(chance.choice(len(everything), config.fit_frames, replace=False))
        sample = everything[chosen]
        distinct = len(np.unique(sample, axis=0)) if len(sample) < 10 * config.count else len(sample)
        if distinct < config.count:
            raise DataError(
                f"{distinct} different frames can't make {config.count} units", mend="give more speech or fewer units"
            )
        spoken = _joined(labels, frames)[chosen] if config.discriminants else None
        projection = projection_of(sample, config, spoken)
        kmeans = MiniBatchKMeans(
            config.count, batch_size=4096, n_init=config.fit_tries, random_state=config.seed, max_no_improvement=20
        ).fit(sample @ projection)
        centroids = np.asarray(kmeans.cluster_centers_, np.float32)
        general = unit_sounds(logs, [nearest(each @ projection, centroids) for each in frames], config)
        own = general
        if voice:
            logs = log_mels(voice, config)
            own = unit_sounds(logs, [nearest(features(log, config) @ projection, centroids) for log in logs], config)
        heard = own[2] > 0
        mel = np.where(heard[:, None], own[0], general[0]).astype(np.float32)
        durations = np.where(heard, own[1], general[1]).astype(np.float32)
        return cls(config, projection, centroids, mel, durations)

    def features(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> list[np.ndarray]:
        """What the nearest centroid is taken of, float32 [units, dimensions] for each wave."""
        return [features(log, self.config) @ self.projection for log in log_mels(waves, self.config, rate)]

    def units(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> list[np.ndarray]:
        """See `Extractor.units`; a wave of n samples has ceil(n / hop) units."""
        return [nearest(each, self.centroids) for each in self.features(waves, rate)]

    def save(self, folder: str | Path) -> None:
        """Write `codebook.npz` and `speech.json`; equal codebooks give equal bytes."""
        from slm.speech.codebook_vocoder import CodebookVocoder

        packed = io.BytesIO()
        np.savez(packed, **{name: getattr(self, name) for name in ARRAYS})
        write_atomic(Path(folder) / CODEBOOK_FILE, packed.getvalue())
        about = {
            "extractor": self.name,
            "vocoder": CodebookVocoder.name,
            "units": vars(self.unit_set),
            "config": self.config.model_dump(mode="json"),
        }
        write_json(Path(folder) / SPEECH_FILE, about)

    @classmethod
    def load(cls, folder: str | Path) -> MelKMeans:
        """Read what `save` wrote.

        Raises:
            DataError: missing or damaged files, or arrays that do not fit the configuration.
        """
        path = Path(folder) / CODEBOOK_FILE
        about = read_json(Path(folder) / SPEECH_FILE)
        try:
            config = MelKMeansConfig.model_validate(about["config"])
            with np.load(path, allow_pickle=False) as arrays:
                loaded = cls(config, *(arrays[name] for name in ARRAYS))
        except FileNotFoundError:
            raise DataError("codebook not found", where=str(path)) from None
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"the codebook can't be read: {error}", where=str(path)) from None
        shapes = [getattr(loaded, name).shape for name in ARRAYS]
        count, dimensions = config.count, config.dimensions
        if shapes != [(config.width, dimensions), (count, dimensions), (count, config.mel_bands), (count,)]:
            raise DataError(f"codebook arrays have shapes {shapes}, not those of its configuration", where=str(path))
        return loaded


def log_mels(waves: Sequence[np.ndarray], config: MelKMeansConfig, rate: int = SAMPLE_RATE) -> list[np.ndarray]:
    """Log-mel power of each wave, float32 [frames, mel_bands]; frame i is centred on unit period i.

    Raises:
        DataError: a wave is unusable (see `check_wave`); names its position.
    """
    checked = [check_wave(wave, rate, where=f"wave {number} of {len(waves)}") for number, wave in enumerate(waves)]
    return [log for batch in _batches(checked) for log in _log_mels_of(batch, config)]


def _batches(waves: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    size = 0
    for wave in waves:
        if batch and size + len(wave) > BATCH_SAMPLES:
            yield batch
            batch, size = [], 0
        batch.append(wave)
        size += len(wave)
    if batch:
        yield batch


def _log_mels_of(waves: Sequence[np.ndarray], config: MelKMeansConfig) -> list[np.ndarray]:
    """One call of librosa for many waves: they lie on one hop grid with silence in between."""
    import librosa

    hop, lead = config.hop, (config.window - config.hop) // 2
    counts = [-(-len(wave) // hop) for wave in waves]
    slots = [count + -(-config.window // hop) for count in counts]
    starts = np.concatenate([[0], np.cumsum(slots)])
    joined = np.zeros(int(starts[-1]) * hop + config.window, np.float32)
    for wave, start in zip(waves, starts, strict=False):
        joined[start * hop + lead :][: len(wave)] = wave
    # Scaled so that a full-scale sine has power 1 whatever the window.
    power = librosa.feature.melspectrogram(
        y=joined * (4.0 / config.window), sr=SAMPLE_RATE, n_fft=config.window, hop_length=hop, center=False,
        n_mels=config.mel_bands, fmin=config.lowest_hz, fmax=config.highest_hz, power=2.0, norm=None,
    )  # fmt: skip
    logs = np.log(power.T + POWER_FLOOR)
    return [logs[start : start + count] for start, count in zip(starts, counts, strict=False)]


def features(log: np.ndarray, config: MelKMeansConfig) -> np.ndarray:
    """What distances are taken of, float32 [frames, width]: normalised frames beside their neighbours."""
    if config.cepstra:
        from scipy.fft import dct

        log = dct(log, axis=1, norm="ortho")[:, : config.cepstra]
    if config.normalise != "none":
        log = log - log.mean(axis=0)
    if config.normalise == "mean_variance":
        # The constant keeps an utterance that hardly varies in a band from being blown up there.
        log = log / (log.std(axis=0) + 0.01)
    padded = np.pad(log, ((config.stack, config.stack), (0, 0)), mode="edge")
    return np.concatenate([padded[shift : shift + len(log)] for shift in range(2 * config.stack + 1)], axis=1)


def discriminants(sample: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Directions along which labels differ most for the spread inside each, float32 [width, count].

    Args:
        sample: features [frames, width].
        labels: int [frames]; labels that occur once say nothing and are left out.

    Raises:
        DataError: fewer labels than directions.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    _, place, occurs = np.unique(labels, return_inverse=True, return_counts=True)
    often = occurs[place] > 1
    if (occurs > 1).sum() <= count:
        raise DataError(f"{(occurs > 1).sum()} different labels can't give {count} discriminants")
    analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage=1e-3, n_components=count)
    analysis.fit(sample[often].astype(np.float64), labels[often])
    return np.asarray(analysis.scalings_[:, :count], np.float32)


def projection_of(sample: np.ndarray, config: MelKMeansConfig, labels: np.ndarray | None = None) -> np.ndarray:
    """What features are multiplied by, float32 [width, dimensions]: discriminants of the labels, or their scale.

    Args:
        sample: features [frames, width].
        labels: int [frames], for discriminants.
    """
    if labels is not None:
        return discriminants(sample, labels, config.discriminants)
    if config.cepstra:
        # Cepstra of different order differ in spread by orders of magnitude; mel bands hardly do.
        return np.diag(1 / (sample.std(axis=0) + 1e-3)).astype(np.float32)
    return np.eye(config.width, dtype=np.float32)


def _joined(labels: Sequence[np.ndarray] | None, frames: Sequence[np.ndarray]) -> np.ndarray:
    if labels is None or [len(row) for row in labels] != [len(each) for each in frames]:
        raise DataError("discriminants need one label for each unit period of each wave")
    return np.concatenate(list(labels))


def nearest(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid of each row, int32 [rows] (squared Euclidean distance)."""
    return np.argmin((centroids**2).sum(axis=1) - 2.0 * features @ centroids.T, axis=1).astype(np.int32)


def unit_sounds(
    logs: Sequence[np.ndarray], units: Sequence[np.ndarray], config: MelKMeansConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How units sound and last: mean log-mel [count, bands], mean run length [count], number of frames [count].

    A unit that never occurs gets the overall mean and one period.
    """
    sums = np.zeros((config.count, config.mel_bands))
    frames, runs = np.zeros(config.count), np.zeros(config.count)
    for log, row in zip(logs, units, strict=True):
        np.add.at(sums, row, log)
        np.add.at(frames, row, 1)
        np.add.at(runs, row[np.flatnonzero(np.diff(row, prepend=-1))], 1)
    seen = frames > 0
    mel = np.where(seen[:, None], sums / np.maximum(frames, 1)[:, None], sums.sum(axis=0) / max(frames.sum(), 1))
    return mel, np.where(seen, frames / np.maximum(runs, 1), 1.0), frames
