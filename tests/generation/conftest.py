"""A pico model with random weights that hears and speaks: its units come from a codebook of tones."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import make_base, make_text_tokenizer

from slm.artifact import write_manifest
from slm.config.speech import MelKMeansConfig
from slm.speech.audio import write_audio
from slm.speech.mel_kmeans import MelKMeans
from slm.tokens.vocabulary import add_units, save_tokenizer


def tone(seed: int, seconds: float = 0.6) -> np.ndarray:
    """A few notes one after the other, and a little noise."""
    random = np.random.default_rng(seed)
    time = np.arange(int(4000 * seconds)) / 16000
    notes = [np.sin(2 * np.pi * pitch * time) for pitch in random.choice([200, 400, 900, 1800, 3500], 4)]
    return (0.3 * np.concatenate(notes) + 0.001 * random.standard_normal(len(time) * 4)).astype(np.float32)


@pytest.fixture(scope="session")
def talking(tmp_path_factory) -> SimpleNamespace:
    """`run/base`: the model; `run/data/speech`: its extractor and vocoder; `run/questions`: three recordings."""
    run = tmp_path_factory.mktemp("run")
    speech = run / "data" / "speech"
    speech.mkdir(parents=True)
    config = MelKMeansConfig(count=12, fit_frames=100, fit_tries=1, griffin_lim_steps=2)
    codebook = MelKMeans.fit([tone(seed) for seed in range(6)], config)
    codebook.save(speech)
    tokenizer = make_text_tokenizer()
    vocabulary = add_units(tokenizer, codebook.unit_set)
    save_tokenizer(run / "tokenizer", tokenizer, vocabulary)
    write_manifest(run / "tokenizer", "tokenizer", config={})
    base = make_base(run / "base", run / "tokenizer")
    questions = run / "questions"
    for name in ("a", "b", "deep/c"):
        (questions / name).parent.mkdir(parents=True, exist_ok=True)
        write_audio(questions / f"{name}.wav", tone(ord(name[-1])))
    return SimpleNamespace(run=run, base=base, speech=speech, questions=questions, codebook=codebook)


@pytest.fixture(scope="session")
def speaker(talking):
    """The model, its extractor and its vocoder."""
    from slm.generation.answers import open_speaker
    from slm.model.load import load_model

    return open_speaker(load_model(talking.base), talking.speech)


class Reciting(torch.nn.Module):
    """A model that says the same to every prompt."""

    def __init__(self, ids: list[int], rows: int) -> None:
        super().__init__()
        self.here = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(max_position_embeddings=512)
        self.ids, self.rows, self.said = ids, rows, 0

    def forward(self, input_ids, **_):
        self.said = 0 if input_ids.shape[1] > 1 else self.said + 1
        logits = torch.zeros(len(input_ids), 1, self.rows)
        logits[:, :, self.ids[min(self.said, len(self.ids) - 1)]] = 100.0
        return SimpleNamespace(logits=logits)


@pytest.fixture(scope="session")
def reciting(speaker):
    """`reciting(text)`: the speaker with a model that answers everything so, and then ends."""
    from slm.generation.answers import Speaker
    from slm.tokens.chat import end_of_answer

    def build(text: str) -> Speaker:
        tokenizer, vocabulary = speaker.loaded.tokenizer, speaker.loaded.vocabulary
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], end_of_answer(tokenizer)]
        model = Reciting(ids, vocabulary.size)
        return Speaker(replace(speaker.loaded, model=model), speaker.extractor, speaker.vocoder)

    return build
