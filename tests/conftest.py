"""Shared fixtures: a pico tokenizer with units, a pico base, all made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

import hypothesis
import pytest
import torch
from support import make_base, make_text_tokenizer

# How long an example takes says nothing about it on a machine that is shared.
hypothesis.settings.register_profile("slm", deadline=None, derandomize=True)
hypothesis.settings.load_profile("slm")


LONGEST = ("pipeline/test_pico.py", "engine/test_train.py", "engine/test_bad_input.py", "eval/test_run.py", "engine/")
"""Files that take minutes; begun last, one of them would run alone at the end while the other core waits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they come."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(tests).as_posix()
        return next((at for at, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def units():
    """Sixteen units at 25 Hz."""
    from slm.tokens.vocabulary import UnitSet

    return UnitSet(16, 25.0, "mel_kmeans", "0" * 64)


@pytest.fixture(scope="session")
def pico_tokenizer(tmp_path_factory, units) -> Path:
    """Artifact folder: text tokenizer plus sixteen units."""
    from slm.artifact import write_manifest
    from slm.tokens.vocabulary import add_units, save_tokenizer

    tokenizer = make_text_tokenizer()
    vocabulary = add_units(tokenizer, units)
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, tokenizer, vocabulary)
    write_manifest(folder, "tokenizer", config={})
    return folder


@pytest.fixture(scope="session")
def pico_base(tmp_path_factory, pico_tokenizer) -> Path:
    """Untied pico base."""
    return make_base(tmp_path_factory.mktemp("base"), pico_tokenizer)


@pytest.fixture(scope="session")
def pico_tied_base(tmp_path_factory, pico_tokenizer) -> Path:
    """Pico base whose head is its embedding."""
    return make_base(tmp_path_factory.mktemp("tied"), pico_tokenizer, tied=True)


@pytest.fixture
def hf_cache(tmp_path_factory, monkeypatch):
    """A cache of data sets that is the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
