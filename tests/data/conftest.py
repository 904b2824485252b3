"""A shard set to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_sets import make_samples, make_set


@pytest.fixture
def samples():
    return make_samples(100)


@pytest.fixture
def shard_set(tmp_path, samples) -> Path:
    """100 samples in groups of 8, four shards."""
    return make_set(tmp_path / "set", samples, shard_bytes=20_000)
