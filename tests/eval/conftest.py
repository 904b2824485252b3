"""A world of a few sentences in tones, and a model that has learned it by heart."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import make_text_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from slm.artifact import write_manifest
from slm.config.speech import MelKMeansConfig
from slm.speech.mel_kmeans import MelKMeans
from slm.stages import RECIPES
from slm.tokens.chat import render_many
from slm.tokens.vocabulary import add_units, save_tokenizer, text_vocabulary, units_to_text

ANSWERS = {"what is two": "two", "say paris": "paris", "say france": "france", "what is what": "what"}
SETS = ("text_qa", "instructions", "asr", "tts", "sqa")


def tone(seed: int, seconds: float = 0.6) -> np.ndarray:
    """A few notes one after the other, and a little noise."""
    random = np.random.default_rng(seed)
    time = np.arange(int(4000 * seconds)) / 16000
    notes = [np.sin(2 * np.pi * pitch * time) for pitch in random.choice([200, 400, 900, 1800, 3500], 4)]
    wave = 0.3 * np.concatenate(notes) + 0.001 * random.standard_normal(len(time) * 4)
    return wave.astype(np.float32)


def _items(units: dict[str, list[int]]) -> dict[str, list[dict]]:
    sets: dict[str, list[dict]] = {name: [] for name in SETS}

    def add(name: str, stage: str, example: dict, target: dict, **more) -> None:
        number = len(sets[name])
        sets[name].append(
            {"id": f"{name}-{number}", "task": name, "stage": stage, "example": example, "target": target, **more}
        )

    for question, answer in ANSWERS.items():
        heard, spoken = units[question], f"{answer}{units_to_text(units[answer])}"
        add("text_qa", "llm", {"input": question, "output": answer}, {"answer": answer})
        example = {"instruction": "write", "discrete_unit": heard, "transcription": question}
        add("asr", "asr", example, {"text": question}, audio=f"wav/{question}.wav")
        example = {"instruction": "say", "transcription": answer, "interleaf": spoken}
        add("tts", "tts", example, {"text": answer, "units": units[answer]}, reference_audio=f"wav/{answer}.wav")
        example = {"input_unit": heard, "input_pseudo": question, "output_pseudo": answer, "output_interleaf": spoken}
        add("sqa", "sqa", example, {"answer": answer, "text": question})
    for word in ("paris", "france"):
        target = {"answer": f"{word} {word}", "rule": "repeat", "args": {"words": word, "times": 2}}
        add("instructions", "llm", {"input": f"repeat: {word}", "output": f"{word} {word}"}, target)
    return sets


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> SimpleNamespace:
    """`data`: a data folder; `tokenizer`, `vocabulary`: with its units; `turns`: all that is to be learned."""
    data = tmp_path_factory.mktemp("data")
    names = [*ANSWERS, *ANSWERS.values()]
    waves = {name: tone(number) for number, name in enumerate(names)}
    config = MelKMeansConfig(count=12, fit_frames=100, fit_tries=1, griffin_lim_steps=2)
    speech = MelKMeans.fit(list(waves.values()), config)
    (data / "speech").mkdir()
    speech.save(data / "speech")
    found = dict(zip(waves, speech.units(list(waves.values())), strict=True))
    role = {name: "input" if name in ANSWERS else "output" for name in names}
    units = {name: speech.unit_set.for_role(found[name].tolist(), role[name]) for name in names}
    sets = _items(units)
    (data / "eval").mkdir()
    for name, items in sets.items():
        (data / "eval" / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    write_manifest(data, "tiny-data", config={})
    tokenizer = make_text_tokenizer()
    vocabulary = add_units(tokenizer, speech.unit_set)
    turns = [RECIPES[item["stage"]].turn(item["example"]) for items in sets.values() for item in items]
    return SimpleNamespace(data=data, tokenizer=tokenizer, vocabulary=vocabulary, turns=turns, sets=sets)


def save_model(folder: Path, model: LlamaForCausalLM, tokenizer, vocabulary) -> Path:
    """A base artifact."""
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer, vocabulary)
    write_manifest(folder, "base", config={})
    return folder


def new_model(rows: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.06,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, world: SimpleNamespace, steps: int) -> LlamaForCausalLM:
    rows = list(render_many(world.tokenizer, world.turns))
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, rendered in enumerate(rows):
        supervised = torch.tensor(rendered.supervised).nonzero()[:, 0]
        labels[row, supervised] = ids[row, supervised]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def learned(world, tmp_path_factory) -> Path:
    """A model that answers everything in the world rightly."""
    model = train(new_model(world.vocabulary.size), world, 120)
    return save_model(tmp_path_factory.mktemp("learned"), model, world.tokenizer, world.vocabulary)


@pytest.fixture(scope="session")
def ignorant(world, tmp_path_factory) -> Path:
    """The same model before it learned."""
    model = new_model(world.vocabulary.size)
    return save_model(tmp_path_factory.mktemp("ignorant"), model, world.tokenizer, world.vocabulary)


@pytest.fixture(scope="session")
def text_only(tmp_path_factory) -> Path:
    """A model without unit rows."""
    tokenizer = make_text_tokenizer()
    vocabulary = text_vocabulary(tokenizer)
    model = new_model(vocabulary.size)
    return save_model(tmp_path_factory.mktemp("text"), model, tokenizer, vocabulary)
