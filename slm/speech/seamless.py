"""Units and speech by the original package, run as a job in its own environment (see `seamless_job.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifact import digest, read_json, write_json
from slm.config.speech import SpeechConvertJob
from slm.errors import DataError, MachineError, SlmError
from slm.speech.audio import SAMPLE_RATE, check_wave
from slm.speech.hifigan_voices import Voices
from slm.speech.load import SPEECH_FILE
from slm.speech.seamless_env import interpreter
from slm.tokens.vocabulary import UnitSet

JOB = Path(__file__).with_name("seamless_job.py")
SHORTEST = 400
"""Samples of the first unit."""


class PackageProcess:
    """The package, loaded once in a process of its own and asked as often as one likes.

    Args:
        environment: folder that `slm speech env seamless` made.
        setup: the job's first request.

    Raises:
        MachineError: no such environment, or the package can't load what it is given.
    """

    def __init__(self, environment: str | Path, setup: Mapping[str, Any]) -> None:
        python = interpreter(environment)
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the process
        alone = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        self._process = subprocess.Popen(
            [str(python), str(JOB)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**alone, "PYTHONNOUSERSITE": "1"},
        )
        weakref.finalize(self, _end, self._process)
        self.ask(setup, MachineError)

    def ask(self, request: Mapping[str, Any], kind: type[SlmError] = DataError) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            kind: the package refused it.
            MachineError: its process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise MachineError(
                f"the process of seamless_communication ended: {last}",
                where=str(self._process.args),
                mend="make its environment again, or give it more memory",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise kind(f"seamless_communication: {answer['error']}", where="the process of the package")
        return answer


def _end(process: subprocess.Popen) -> None:
    if process.stdin is not None:
        process.stdin.close()  # the job ends by itself when its input does
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@dataclass(frozen=True)
class SeamlessExtractor:
    """The package's `UnitExtractor`; implements `Extractor`.

    Attributes:
        unit_set: its units.
        package: what the job is set up with.
        environment: where it runs.
    """

    unit_set: UnitSet
    package: Mapping[str, Any] = field(repr=False)
    environment: str

    name = "seamless"

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> SeamlessExtractor:
        """Read what `slm speech convert extractor=seamless` wrote; the package starts with the first wave.

        Raises:
            DataError: not such a folder, or a checkpoint that is gone or has another size.
        """
        units, package = read_description(folder)
        setup = {key: package[key] for key in ("xlsr", "kmeans", "layer")}
        return cls(
            units,
            {"setup": "extractor", **setup, "config": package["xlsr_config"], "device": device},
            package["environment"],
        )

    @property
    def rate_hz(self) -> float:
        """Units a second."""
        return self.unit_set.rate_hz

    @property
    def count(self) -> int:
        """Number of units."""
        return self.unit_set.count

    @property
    def identity(self) -> str:
        """Hex sha256 of the checkpoints and the layer."""
        return self.unit_set.codebook

    @cached_property
    def _process(self) -> PackageProcess:
        return PackageProcess(self.environment, self.package)

    def units(self, waves: Sequence[np.ndarray], rate: int = SAMPLE_RATE) -> list[np.ndarray]:
        """See `Extractor.units`; a wave that is too short for one unit has none."""
        checked = [check_wave(wave, rate, where=f"wave {number} of {len(waves)}") for number, wave in enumerate(waves)]
        long_enough = [number for number, wave in enumerate(checked) if len(wave) >= SHORTEST]
        found = [np.zeros(0, np.int32) for _ in waves]
        with tempfile.TemporaryDirectory(prefix="slm-seamless-") as folder:
            given = [f"{folder}/{number}.wave.npy" for number in long_enough]
            wanted = [f"{folder}/{number}.units.npy" for number in long_enough]
            for number, path in zip(long_enough, given, strict=True):
                np.save(path, checked[number])
            if given:
                self._process.ask({"waves": given, "out": wanted})
            for number, path in zip(long_enough, wanted, strict=True):
                found[number] = np.load(path, allow_pickle=False).astype(np.int32)
        return found


@dataclass(frozen=True)
class SeamlessVocoder:
    """The package's vocoder; implements `Vocoder`.

    Attributes:
        unit_set: the units it speaks; durations are predicted where answers have no repeats.
        package: what the job is set up with.
        environment: where it runs.
        language, speaker: who speaks.
    """

    unit_set: UnitSet
    package: Mapping[str, Any] = field(repr=False)
    environment: str
    language: str
    speaker: int

    name = "seamless"

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "auto", *, language: str | None = None, speaker: int | None = None
    ) -> SeamlessVocoder:
        """Read what `slm speech convert extractor=seamless vocoder=…` wrote; the package starts with the first units.

        Raises:
            DataError: not such a folder, or no such voice.
        """
        units, package = read_description(folder)
        config = package["vocoder_config"]
        spoken = config["lang_spkr_idx_map"]["multispkr"]
        voices = Voices({name: tuple(each) for name, each in spoken.items()}, config["num_spkrs"])
        voice = voices.choose(language, speaker)
        name = list(spoken)[voice.language]
        setup = {"setup": "vocoder", "vocoder": package["vocoder"], "config": config, "device": device}
        return cls(units, setup, package["environment"], name, voice.speaker)

    @cached_property
    def _process(self) -> PackageProcess:
        return PackageProcess(self.environment, self.package)

    def wave(self, units: Sequence[int], durations: Sequence[float] | None = None) -> np.ndarray:
        """See `Vocoder.wave`."""
        from slm.speech.hifigan import check_units, periods_of

        numbers = check_units(units, self.unit_set.count)
        predicted = durations is None and self.unit_set.output == "removed"
        if durations is not None:
            numbers = np.repeat(numbers, periods_of(durations, len(numbers)))
        if not len(numbers):
            return np.zeros(0, np.float32)
        with tempfile.TemporaryDirectory(prefix="slm-seamless-") as folder:
            given, wanted = f"{folder}/units.npy", f"{folder}/wave.npy"
            np.save(given, numbers)
            voice = {"language": self.language, "speaker": self.speaker}
            self._process.ask({"units": given, "out": wanted, **voice, "durations": predicted})
            found: np.ndarray = np.load(wanted, allow_pickle=False)
        return found.astype(np.float32)


def describe_package(job: SpeechConvertJob, folder: Path, inputs: Mapping[str, str]) -> None:
    """Write the `speech.json` of a speech artifact whose work the package does: checkpoints stay where they are.

    Raises:
        CheckpointError, DataError: see `convert_speech`.
        MachineError: no such environment.
    """
    from slm.speech.convert import read_centroids
    from slm.speech.seamless_config import vocoder_config, xlsr_config

    assert job.environment is not None and job.xlsr is not None and job.kmeans is not None
    interpreter(job.environment)
    centroids = read_centroids(job.kmeans)
    identity = digest({"extractor": "seamless", "layer": job.layer, **{key: inputs[key] for key in ("xlsr", "kmeans")}})
    rate_hz = SAMPLE_RATE / int(np.prod(job.conv_stride))
    units = UnitSet(len(centroids), rate_hz, "seamless", identity, job.input, job.output)
    package: dict[str, Any] = {
        "environment": str(Path(job.environment).resolve()),
        "layer": job.layer,
        "xlsr_config": xlsr_config(job, centroids),
    }
    if job.vocoder is not None:
        package["vocoder_config"] = vocoder_config(job, units)
    for name in ("xlsr", "kmeans", "vocoder"):
        path = job.sources().get(name)
        if path is not None:
            package[name] = str(Path(path).resolve())
            package[f"{name}_bytes"] = Path(path).stat().st_size
    about = {
        "extractor": "seamless",
        "vocoder": "seamless" if job.vocoder is not None else None,
        "units": vars(units),
        "package": package,
    }
    write_json(folder / SPEECH_FILE, about)


def read_description(folder: str | Path) -> tuple[UnitSet, dict[str, Any]]:
    """Unit set and `package` of what `describe_package` wrote.

    Raises:
        DataError: not such a folder, or a checkpoint that is gone or has another size.
    """
    path = Path(folder) / SPEECH_FILE
    about = read_json(path)
    try:
        units, package = UnitSet(**about["units"]), dict(about["package"])
        files = {name: package[f"{name}_bytes"] for name in ("xlsr", "kmeans", "vocoder") if name in package}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a description of the package's work: {error}", where=str(path)) from None
    for name, size in files.items():
        place = Path(package[name])
        if not place.is_file() or place.stat().st_size != size:
            raise DataError(
                f"{name}: the checkpoint is gone or has changed",
                where=str(place),
                mend="put it back, or run slm speech convert extractor=seamless again",
            )
    return units, package
