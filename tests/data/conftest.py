"""A shard set to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_sets import JOBS, ls960_rows, save_units_tokenizer, write_jsonl
from shard_sets import make_samples, make_set

from slm.config.jobs import load_data_job


@pytest.fixture
def samples():
    return make_samples(100)


@pytest.fixture
def shard_set(tmp_path, samples) -> Path:
    """100 samples in groups of 8, four shards."""
    return make_set(tmp_path / "set", samples, shard_bytes=20_000)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    """A pico tokenizer with the published sets' 10,000 units."""
    return save_units_tokenizer(tmp_path_factory.mktemp("tokenizer") / "units")


@pytest.fixture
def many(tmp_path, pico_tokenizer):
    """Makes jobs of the same 100 examples in two files and, by default, 8 parts, with the pico units."""
    rows = ls960_rows(100, different=16)
    units = "{count: 16, rate_hz: 25, extractor: mel_kmeans, codebook: as_tokenizer, input: kept, output: removed}"
    write_jsonl(tmp_path / "rows" / "a.jsonl", rows[:35])
    write_jsonl(tmp_path / "rows" / "b.jsonl", rows[35:])

    def make(name: str, *changes: str):
        source = f"source={{kind: jsonl, path: '{tmp_path}/rows/*.jsonl'}}"
        pairs = [f"out={tmp_path / name}", f"tokenizer={pico_tokenizer}", source, f"units={units}"]
        pairs += ["group=4", "part=13", "workers=1"]
        return load_data_job(str(JOBS / "librispeech_asr.yaml"), [*pairs, *changes])

    make.rows, make.folder, make.units = rows, tmp_path, units
    return make
