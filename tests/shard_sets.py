"""Shard sets made on the spot, without a tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slm.artifact import write_manifest
from slm.data.build import set_facts
from slm.data.writer import ShardWriter
from slm.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary("t" * 64, 1000)


def make_samples(count: int, *, longest: int = 60, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random samples: (ids, mask), ids unique to the sample by their first two tokens."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        length = int(rng.integers(2, longest + 1))
        ids = rng.integers(0, 1000, length)
        ids[:2] = divmod(i, 1000)
        samples.append((ids, rng.random(length) < 0.5))
    return samples


def make_set(folder: Path, samples, *, group_size: int = 8, shard_bytes: int = 2**20) -> Path:
    """A sealed shard set."""
    folder.mkdir(parents=True)
    with ShardWriter(folder, vocabulary=VOCABULARY, group_size=group_size, shard_bytes=shard_bytes) as writer:
        for ids, mask in samples:
            writer.add(ids, mask)
    facts = set_facts(writer.entries, writer.length_counts, VOCABULARY)
    write_manifest(folder, "shards", config={}, about=facts)
    return folder
