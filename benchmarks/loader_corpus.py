"""The corpus of `benchmarks/loader.py`: drawn from a seed, in the proportions of speech and text training data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from slm.artifact import write_manifest
from slm.data.build import set_facts
from slm.data.writer import ShardWriter
from slm.tokens.vocabulary import UnitSet, Vocabulary

SEED = 7
MEDIAN, SIGMA = 400, 0.55
SHORTEST, LONGEST = 8, 4096
TEXT, UNITS = 128_000, 10_000
SPAN = 64
BLOCK = 10_000
VOCABULARY = Vocabulary("0" * 64, TEXT + UNITS, TEXT, UnitSet(UNITS, 50.0, "synthetic", "0" * 64))


def draw(samples: int, seed: int = SEED) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of samples.

    Lengths are lognormal (median 400, sigma 0.55: mean about 464). Spans of 64 tokens are text (log-uniform
    ids, near Zipf's law) or units (uniform); a sample's second part, from a random place on, is its labels.

    Yields:
        Lengths (samples,), ids int32 (tokens,), mask bool (tokens,).
    """
    for first in range(0, samples, BLOCK):
        rng = np.random.default_rng([seed, first])
        count = min(BLOCK, samples - first)
        lengths = np.clip(rng.lognormal(np.log(MEDIAN), SIGMA, count).astype(np.int64), SHORTEST, LONGEST)
        tokens = int(lengths.sum())
        text = (TEXT ** rng.random(tokens, dtype=np.float32)).astype(np.int32) - 1
        units = rng.integers(TEXT, TEXT + UNITS, tokens, dtype=np.int32)
        spoken = np.repeat(rng.random(-(-tokens // SPAN)) < 0.5, SPAN)[:tokens]
        within = np.arange(tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        answer = np.repeat((lengths * rng.random(count)).astype(np.int64), lengths)
        yield lengths, np.where(spoken, units, text), within >= answer


def write_corpus(folder: Path, samples: int) -> None:
    """`ids.bin`, `mask.bin` (a byte a token) and `lengths.npy`: what a memmap reader reads."""
    lengths = []
    with open(folder / "ids.bin", "wb") as ids_file, open(folder / "mask.bin", "wb") as mask_file:
        for block, ids, mask in draw(samples):
            lengths.append(block)
            ids.tofile(ids_file)
            mask.tofile(mask_file)
    np.save(folder / "lengths.npy", np.concatenate(lengths))


def drawn_samples(samples: int, seed: int = SEED) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same, a sample at a time."""
    for lengths, ids, mask in draw(samples, seed):
        at = 0
        for length in lengths.tolist():
            yield ids[at : at + length], mask[at : at + length]
            at += length


def write_shards(samples: Iterable[tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """A sealed shard set."""
    with ShardWriter(folder, vocabulary=VOCABULARY) as writer:
        for ids, mask in samples:
            writer.add(ids, mask)
    facts = set_facts(writer.entries, writer.length_counts, VOCABULARY)
    write_manifest(folder, "shards", config={"seed": SEED}, about=facts)
