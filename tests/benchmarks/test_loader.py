"""The loader's benchmark: every contender reads the same, and the tables say what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("loader", "loader_contenders", "loader_corpus")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return [__import__(name) for name in names]


@pytest.fixture
def corpus(modules, tmp_path):
    _, contenders, drawing = modules
    folder = tmp_path / "memmap"
    folder.mkdir()
    drawing.write_corpus(folder, 300)
    return contenders.Corpus(str(folder)), folder


def test_a_corpus_is_the_same_from_the_disk_and_drawn_again(modules, corpus):
    drawn = list(modules[2].drawn_samples(300))
    assert len(drawn) == 300
    for (ids, mask), (wanted, wanted_mask) in zip(corpus[0].samples(), drawn, strict=True):
        np.testing.assert_array_equal(ids, wanted)
        np.testing.assert_array_equal(mask, wanted_mask)
    lengths = corpus[0].lengths
    assert 400 < lengths.mean() < 530 and lengths.max() <= 4096
    assert corpus[0].ids.min() >= 0 and corpus[0].ids.max() < 138_000
    assert 0.4 < (corpus[0].ids >= 128_000).mean() < 0.6


def test_greedy_rows_hold_every_sample_whole(modules, corpus):
    found = []
    samples = list(corpus[0].samples())
    for ids, mask, tokens, rows in modules[1].greedy(samples):
        assert rows * 4096 >= tokens == (ids != -1).sum() - (8 * 4096 - tokens)
        found.append((ids, mask))
    ids, mask = (np.concatenate(parts) for parts in zip(*found, strict=True))
    at = 0
    for sample, labels in samples:
        if at % 4096 + len(sample) > 4096:
            assert not ids[at : at + 4096 - at % 4096].any()
            at += 4096 - at % 4096
        np.testing.assert_array_equal(ids[at : at + len(sample)], sample)
        np.testing.assert_array_equal(mask[at : at + len(sample)], labels)
        at += len(sample)


def test_contenders_without_an_environment_of_their_own_read_the_same(modules, corpus, tmp_path):
    _, contenders, _ = modules
    folders = {"memmap": corpus[1]}
    for name in ("ours", "webdataset"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        contenders.WRITERS[name](corpus[0], folders[name])
    folders["stock_groups"] = folders["ours"]
    seen = {}
    for name, folder in folders.items():
        one_pass = contenders.READERS[name](folder)
        passes = [contenders.measure(one_pass, summed=True) for _ in range(3)]
        seen[name] = {tuple(found[key] for key in ("tokens", "ids_sum", "labels")) for found in passes}
    wanted = (int(corpus[0].lengths.sum()), int(corpus[0].ids.sum(dtype=np.int64)), int(corpus[0].mask.sum()))
    assert seen == {name: {wanted} for name in folders}


def test_ratios_are_taken_within_a_round(modules, tmp_path):
    loader, _, _ = modules
    contenders = [c for c in loader.CONTENDERS if c.name in ("memmap", "ours", "webdataset")]
    for name in ("memmap", "ours", "webdataset"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(bytes(420))
    rates = {"memmap": [100.0, 50.0, 200.0], "ours": [80.0, 45.0, 140.0], "webdataset": [8.0, 5.0, 10.0]}
    found = {"rates": rates, "fills": dict.fromkeys(rates, 0.998), "tokens": 100}
    lines = loader.race_table(contenders, found, {name: tmp_path / name for name in rates}).splitlines()
    assert "| 80.0 (45.0–140.0) | 0.80 × |" in lines[3]
    assert "| 10.00 × | ≥ 8 × | 99.80 % | 4.20 |" in lines[4]
    assert "| 1.25 × |" not in lines[3]


def test_a_folder_that_was_half_written_is_written_again(modules, tmp_path):
    loader, _, _ = modules
    folder, calls = tmp_path / "x", []

    def fails(where):
        (where / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        loader.prepared(folder, fails)
    loader.prepared(folder, calls.append)
    loader.prepared(folder, calls.append)
    assert calls == [folder] and not (folder / "half").exists()
