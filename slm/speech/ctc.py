"""Forced alignment: when each word of a known transcript is spoken, by a transformers CTC model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch

from slm.config.interleave import CtcConfig
from slm.device import best_device
from slm.errors import CheckpointError, ConfigError, DataError
from slm.speech.audio import SAMPLE_RATE, check_wave
from slm.speech.spelling import STAR, Spelling
from slm.speech.viterbi import Lattice, best_paths
from slm.tokens.alignment import Word

STAR_COST = 1.0
"""What `STAR` pays a frame, in nats, below the likeliest label: so it takes only frames that nothing else explains."""
DEAF_TO_PADDING = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""Models that give a wave in a padded batch what they give it alone; the others take one wave at a time."""


@dataclass(frozen=True)
class Alignment:
    """What became of one utterance.

    Attributes:
        words: every word of the transcript as it is written there; empty when it can't be aligned. A
            word without sound (`—`) has no length.
        confidences: of each word, the geometric mean of its characters' probabilities over their
            frames, 0 to 1; None for a word of which the model knows no character.
        fault: why the alignment should not be used; empty when it may be.
    """

    words: tuple[Word, ...] = ()
    confidences: tuple[float | None, ...] = ()
    fault: str = ""

    @property
    def confidence(self) -> float:
        """Mean over the words that have one, 0 without any."""
        known = [c for c in self.confidences if c is not None]
        return sum(known) / len(known) if known else 0.0


@dataclass(frozen=True)
class _Spelled:
    """A transcript as labels.

    Attributes:
        words: as they are written.
        labels: all labels in order, `STAR` included, delimiters between words.
        owners: of each label the index of its word, None for a delimiter.
    """

    words: list[str]
    labels: list[int]
    owners: list[int | None]


class CtcAligner:
    """A CTC model that hears waves, and the characters it writes.

    Args:
        model: transformers' model for CTC; its `pad_token_id` is the blank.
        extractor: its feature extractor.
        vocabulary: token -> label.
        delimiter: the token between words, None if the model writes none.
        special: further labels that are no characters.
        config: device, batch size, least confidence.

    Raises:
        CheckpointError: a model that does not hear waves at 16 kHz, or knows no letters.
    """

    def __init__(
        self,
        model: Any,
        extractor: Any,
        vocabulary: Mapping[str, int],
        delimiter: str | None,
        special: Sequence[int],
        config: CtcConfig,
    ) -> None:
        if model.main_input_name != "input_values" or not hasattr(model.config, "inputs_to_logits_ratio"):
            raise CheckpointError(f"{type(model).__name__} does not hear waves", where=config.model, mend=_MEND)
        if extractor.sampling_rate != SAMPLE_RATE:
            raise CheckpointError(
                f"the model hears {extractor.sampling_rate} Hz, not {SAMPLE_RATE}", where=config.model
            )
        self._blank = int(model.config.pad_token_id)
        self._delimiter = vocabulary.get(delimiter) if delimiter is not None else None
        none_letters = {self._blank, *special} | ({self._delimiter} if self._delimiter is not None else set())
        self._spelling = Spelling.of(vocabulary, frozenset(none_letters))
        if not any(letter.isalpha() for letter in self._spelling.letters):
            raise CheckpointError("the model's vocabulary holds no letters", where=config.model, mend=_MEND)
        self._device = _device(config.device)
        self._model, self._extractor, self._config = model.to(self._device).eval(), extractor, config
        self._hop_s = model.config.inputs_to_logits_ratio / SAMPLE_RATE
        # A group norm over the whole wave, or convolutions behind it, hear the padding.
        norm = getattr(model.config, "feat_extract_norm", "group")
        self._together = norm == "layer" and model.config.model_type in DEAF_TO_PADDING

    @classmethod
    def load(cls, config: CtcConfig) -> CtcAligner:
        """Open a model with its tokenizer and feature extractor.

        Raises:
            CheckpointError: no CTC model, damaged, or one whose head was never trained.
            ConfigError: no such device.
        """
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.model)
            extractor = AutoFeatureExtractor.from_pretrained(config.model)
            model, info = cast(Any, AutoModelForCTC).from_pretrained(
                config.model, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            told = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"no CTC model: {told[0]}", where=config.model, mend=_MEND) from error
        # Only masking in training uses this one, and files often lack it.
        missing = sorted(name for name in info["missing_keys"] if not name.endswith("masked_spec_embed"))
        if missing:
            raise CheckpointError(
                f"weights are missing: {missing[0]}", where=config.model, mend="use a model fine-tuned with CTC"
            )
        delimiter = getattr(tokenizer, "word_delimiter_token", None)
        return cls(model, extractor, tokenizer.get_vocab(), delimiter, tokenizer.all_special_ids, config)

    def align(self, waves: Sequence[np.ndarray], texts: Sequence[str]) -> list[Alignment]:
        """Align utterances with their transcripts, in the order given.

        An utterance that can't be aligned (no word, nothing the model can write, too short for its
        text, below `min_confidence`) is returned with its `fault`; the others do not suffer.

        Args:
            waves: float [samples], mono, 16 kHz.
            texts: transcripts; words are what stands between spaces.

        Raises:
            DataError: as many waves as texts are needed; a wave that is no wave.
            CheckpointError: the model gives values that are not finite.
        """
        if len(waves) != len(texts):
            raise DataError(f"{len(waves)} waves but {len(texts)} texts")
        checked = [check_wave(wave, where=f"utterance {i}") for i, wave in enumerate(waves)]
        spelled = [self._spell(text) for text in texts]
        found: list[Alignment] = []
        for wave, spelling in zip(checked, spelled, strict=True):
            fault = _fault(spelling, self._lattice(spelling).least_frames, self._frames(len(wave)))
            found.append(Alignment(fault=fault))
        alignable = [i for i, alignment in enumerate(found) if not alignment.fault]
        for batch in self._batches(alignable, [len(wave) for wave in checked]):
            log_probs, frames = self._log_probs([checked[i] for i in batch])
            paths = best_paths(self._scores(log_probs), frames, [self._lattice(spelled[i]) for i in batch])
            for i, path, rows in zip(batch, paths, log_probs.cpu().numpy(), strict=True):
                found[i] = self._judge(self._read(spelled[i], path, rows, len(checked[i]) / SAMPLE_RATE))
        return found

    def _spell(self, text: str) -> _Spelled:
        words = text.split()
        labels: list[int] = []
        owners: list[int | None] = []
        for i, word in enumerate(words):
            spelled = self._spelling.labels(word)
            if spelled and labels and self._delimiter is not None:
                labels.append(self._delimiter)
                owners.append(None)
            labels += spelled
            owners += [i] * len(spelled)
        return _Spelled(words, labels, owners)

    def _lattice(self, spelled: _Spelled) -> Lattice:
        """Blanks between characters; at both ends and between words what silence looks like: blank or delimiter."""
        size = self._model.config.vocab_size
        silence, star = size, size + 1
        inner = [self._blank if a == b else silence for a, b in pairwise(spelled.owners)]
        labels = [star if label == STAR else label for label in spelled.labels]
        return Lattice.of(labels, [silence, *inner, silence] if labels else [silence])

    def _scores(self, log_probs: torch.Tensor) -> torch.Tensor:
        """The model's columns, and two more: silence, star."""
        silence = log_probs[..., self._blank]
        if self._delimiter is not None:
            silence = torch.maximum(silence, log_probs[..., self._delimiter])
        star = log_probs.amax(dim=-1) - STAR_COST
        return torch.cat([log_probs, silence[..., None], star[..., None]], dim=-1)

    def _frames(self, samples: int) -> int:
        return max(0, int(self._model._get_feat_extract_output_lengths(torch.tensor(samples))))

    def _batches(self, indices: Sequence[int], samples: Sequence[int]) -> Iterator[list[int]]:
        """Utterances of like length together, the longest first."""
        batch: list[int] = []
        longest = 0
        for i in sorted(indices, key=lambda i: -samples[i]):
            longest = longest or samples[i]
            full = (len(batch) + 1) * longest > self._config.batch_seconds * SAMPLE_RATE
            if batch and (full or not self._together):
                yield batch
                batch, longest = [], samples[i]
            batch.append(i)
        if batch:
            yield batch

    @torch.inference_mode()
    def _log_probs(self, waves: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[int]]:
        """Log-probabilities [waves, frames, labels] and the real frames of each."""
        inputs = self._extractor(
            list(waves), sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt", return_attention_mask=True
        )
        mask = inputs["attention_mask"].to(self._device) if self._together else None
        logits = self._model(inputs["input_values"].to(self._device), attention_mask=mask).logits
        frames = [self._frames(len(wave)) for wave in waves]
        if logits.shape[1] < max(frames):
            raise CheckpointError(
                f"the model gives {logits.shape[1]} frames where {max(frames)} are due", where=self._config.model
            )
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        if not all(torch.isfinite(rows[:count]).all() for rows, count in zip(log_probs, frames, strict=True)):
            raise CheckpointError("the CTC model gives values that are not finite", where=self._config.model)
        return log_probs, frames

    def _read(self, spelled: _Spelled, path: np.ndarray, log_probs: np.ndarray, seconds: float) -> Alignment:
        """Word times and confidences from the state of every frame."""
        held: list[list[int]] = [[] for _ in spelled.words]  # frames in which a word's characters sound
        known: list[list[float]] = [[] for _ in spelled.words]
        for frame, state in enumerate(path.tolist()):
            owner = spelled.owners[state // 2] if state % 2 else None
            if owner is not None:
                held[owner].append(frame)
                if spelled.labels[state // 2] != STAR:
                    known[owner].append(float(log_probs[frame, spelled.labels[state // 2]]))
        words: list[Word] = []
        silent_until = min(frames[0] for frames in held if frames) * self._hop_s
        for text, frames in zip(spelled.words, held, strict=True):
            start = frames[0] * self._hop_s if frames else silent_until
            silent_until = min((frames[-1] + 1) * self._hop_s, seconds) if frames else silent_until
            words.append(Word(text, start, silent_until))
        confidences = tuple(math.exp(sum(row) / len(row)) if row else None for row in known)
        return Alignment(tuple(words), confidences)

    def _judge(self, alignment: Alignment) -> Alignment:
        least = self._config.min_confidence
        if alignment.confidence >= least:
            return alignment
        return replace(alignment, fault=f"the mean confidence {alignment.confidence:.3f} is below {least:g}")


_MEND = "give a folder with a CTC model of wav2vec 2.0's kind, its tokenizer and its feature extractor"


def _fault(spelled: _Spelled, least: int, frames: int) -> str:
    if not spelled.words:
        return "no word"
    if not spelled.labels:
        return "nothing in the text that the model can write"
    if frames < least:
        return f"{frames} frames are too few for {least} characters"
    return ""


def _device(name: str) -> torch.device:
    try:
        device = best_device() if name == "auto" else torch.device(name)
    except RuntimeError:
        raise ConfigError(f"no device {name!r}", mend="auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"there is no GPU {name!r} here", mend="auto, cpu, cuda or cuda:N")
    return device
