"""The code HiFi-GAN: a neural vocoder for units, with a speaker and a language (transformers' SeamlessM4T-v2 module).

Polyak et al., "Speech Resynthesis from Discrete Disentangled Self-Supervised Representations", arXiv 2104.00355.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from slm.artifact import read_json
from slm.errors import CheckpointError, DataError
from slm.speech.audio import SAMPLE_RATE
from slm.speech.hifigan_voices import Voice, Voices
from slm.speech.load import SPEECH_FILE
from slm.speech.xlsr_network import exact_convolutions, find_device
from slm.tokens.vocabulary import UnitSet

VOCODER_FOLDER = "vocoder"
VOICES_FILE = "voices.json"


@dataclass(frozen=True)
class CodeHifiGan:
    """Speaks units through a generator network; implements `Vocoder`.

    Attributes:
        model: transformers' `SeamlessM4Tv2CodeHifiGan`.
        units: the unit set it speaks. Where repeats are removed in answers, the network predicts how long each unit
            lasts; where they are kept, each lasts one period.
        voices: what languages and speakers there are.
        voice: the one that speaks.
    """

    model: Any = field(repr=False)
    units: UnitSet
    voices: Voices
    voice: Voice

    name = "code_hifigan"

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "auto", *, language: str | None = None, speaker: int | None = None
    ) -> CodeHifiGan:
        """Read the vocoder of a speech artifact.

        Args:
            folder: holds `speech.json` and `vocoder/`.
            device: see `Network.load`.
            language, speaker: see `Voices.choose`.

        Raises:
            DataError: units that the network does not have, or at another rate; no such voice.
            CheckpointError: missing or misshapen weights.
            MachineError: no such device.
        """
        folder = Path(folder)
        about = read_json(folder / SPEECH_FILE)
        try:
            units = UnitSet(**about["units"])
        except (KeyError, TypeError) as error:
            raise DataError(f"not a description of speech units: {error}", where=str(folder / SPEECH_FILE)) from None
        model = load_generator(folder / VOCODER_FOLDER).to(find_device(device))
        config = model.config
        require_fitting(units, config.unit_hifi_gan_vocab_size, config.upsample_rates, str(folder))
        voices = Voices.read(folder / VOCODER_FOLDER / VOICES_FILE, config.vocoder_num_langs, config.vocoder_num_spkrs)
        return cls(model, units, voices, voices.choose(language, speaker))

    def speaking_as(self, language: str | None = None, speaker: int | None = None) -> CodeHifiGan:
        """The same vocoder with another voice; see `Voices.choose`."""
        return replace(self, voice=self.voices.choose(language, speaker))

    def wave(self, units: Sequence[int], durations: Sequence[float] | None = None) -> np.ndarray:
        """See `Vocoder.wave`."""
        import torch

        numbers = check_units(units, self.units.count)
        if not len(numbers):
            return np.zeros(0, np.float32)
        device = next(self.model.parameters()).device
        with torch.inference_mode(), exact_convolutions():
            codes = self.model.unit_embedding(torch.from_numpy(numbers).to(device))[None]
            lengths = self._lengths(codes, len(numbers), durations).to(device)
            codes = torch.repeat_interleave(codes, lengths, dim=1).transpose(1, 2)
            periods = codes.shape[2]
            if not periods:
                return np.zeros(0, np.float32)
            # language, units, speaker: the order in which the generator was trained
            speaker = self.model.speaker_embedding(torch.tensor([[self.voice.speaker]], device=device))
            language = self.model.language_embedding(torch.tensor([[self.voice.language]], device=device))
            around = [each.transpose(1, 2).expand(-1, -1, periods) for each in (language, speaker)]
            wave = self.model.hifi_gan(torch.cat([around[0], codes, around[1]], dim=1))
        return wave[0].float().cpu().numpy()

    def _lengths(self, codes: Any, count: int, durations: Sequence[float] | None) -> Any:
        """Periods of each unit, int64 [units]: as given, predicted, or one each."""
        import torch

        if durations is not None:
            return torch.from_numpy(periods_of(durations, count))
        if self.units.output == "kept":
            return torch.ones(count, dtype=torch.long)
        return torch.round(torch.expm1(self.model.dur_predictor(codes)[0])).long().clamp(min=1)


def check_units(units: Sequence[int], count: int) -> np.ndarray:
    """Units as int64 [units].

    Raises:
        DataError: one that is not 0 … count-1, or more than one row.
    """
    numbers = np.asarray(units, dtype=np.int64)
    if numbers.ndim != 1 or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < count):
        raise DataError(f"units must be numbers from 0 to {count - 1} in one row", where="vocoder")
    return numbers


def periods_of(durations: Sequence[float], count: int) -> np.ndarray:
    """Whole periods of each unit, int64 [units]; fractions carry over to the next unit.

    Raises:
        DataError: not one number >= 0 for each of `count` units.
    """
    given = np.asarray(durations, dtype=np.float64)
    if given.shape != (count,) or not (np.isfinite(given) & (given >= 0)).all():
        raise DataError("durations must be one number >= 0 for each unit", where="vocoder")
    return np.diff(np.floor(np.cumsum(given) + 0.5), prepend=0.0).astype(np.int64)


def load_generator(folder: str | Path) -> Any:
    """transformers' module from a Hugging Face folder, ready to speak.

    Raises:
        CheckpointError: no such folder, custom code, missing or misshapen weights.
    """
    from safetensors import SafetensorError
    from transformers import SeamlessM4Tv2Config
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2CodeHifiGan
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError("no vocoder here: no config.json", where=str(folder), mend="slm speech convert makes one")
    about = read_json(path)
    if "auto_map" in about:
        raise CheckpointError("the vocoder brings code of its own (trust_remote_code): it is not run", where=str(path))
    try:
        config = SeamlessM4Tv2Config.from_dict(about)
        model, told = cast(Any, SeamlessM4Tv2CodeHifiGan).from_pretrained(
            folder, config=config, use_safetensors=True, local_files_only=True, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the vocoder can't be loaded: {str(error).splitlines()[0]}",
            where=str(folder),
            mend="convert the checkpoint again",
        ) from error
    for fault, key in (
        ("missing", "missing_keys"),
        ("of another shape", "mismatched_keys"),
        ("left over", "unexpected_keys"),
    ):
        names = sorted(entry if isinstance(entry, str) else entry[0] for entry in told[key])
        if names:
            raise CheckpointError(
                f"weights are {fault}: {names[0]} ({len(names)} in all)", where=str(folder), mend="convert it again"
            )
    return model.eval().requires_grad_(False)


def require_fitting(units: UnitSet, count: int, upsample_rates: Sequence[int], where: str) -> None:
    """The units are those that the network has a sound for, at its rate.

    Raises:
        DataError: they are not.
    """
    if units.count != count:
        raise DataError(
            f"there are {units.count} units, the vocoder speaks {count}",
            where=where,
            mend="take the vocoder that was trained on this codebook",
        )
    hop = int(np.prod(list(upsample_rates)))
    if hop * units.rate_hz != SAMPLE_RATE:
        raise DataError(
            f"the vocoder speaks {SAMPLE_RATE / hop:g} units a second, these are {units.rate_hz:g}", where=where
        )
