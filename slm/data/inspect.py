"""What is in a shard set: counts, kinds of tokens, single samples, statistics. Plain values, for any display.

Tokens are of four kinds: text or unit, prompt or label. The manifest counts labels; units are counted
here, in groups spread evenly over the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifact import read_json
from slm.data import format as fmt
from slm.data.packing import count_rows
from slm.data.reader import ShardSet
from slm.data.seeded import SAMPLES, permutation
from slm.data.verify import set_bytes
from slm.errors import ConfigError
from slm.tokens.vocabulary import VOCABULARY_FILE, Vocabulary

KINDS = ("prompt text", "prompt units", "label text", "label units")
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
UPWARDS = 3
PLACES = 40
BINS = 60
FILL_WINDOW = 64 * fmt.GROUP_SIZE
PACK_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        number: in the set, from 0.
        file, group: where it lies.
        ids: int32, (tokens,).
        mask: bool, (tokens,): True where a token is a label.
    """

    number: int
    file: str
    group: int
    ids: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one kind.

    Attributes:
        unit: speech units, or text.
        label: supervised, or not.
        ids: token ids, at least one.
    """

    unit: bool
    label: bool
    ids: list[int]


def describe_set(folder: str | Path, *, groups: int = 16) -> dict[str, Any]:
    """Counts of a set, and the kinds of its tokens.

    Args:
        folder: the shard set.
        groups: in how many groups at most kinds are counted, spread over the set.

    Returns:
        Plain values: the manifest's counts, `bytes`, `mean`, `quantiles` (share -> tokens of a sample),
        `kinds` (see `KINDS`: share of the tokens in `kinds_groups` groups), `vocabulary`.

    Raises:
        DataError: no shard set, or damaged.
    """
    shards = ShardSet(folder)
    about = shards.manifest.about
    counted = _spread(shards.groups, groups)
    kinds = sum((_kind_counts(shards, group) for group in counted), np.zeros(4, dtype=np.int64))
    names = ("recipe", "group_size", "max_length", "examples", "empty", "dropped", "truncated")
    return {
        "folder": str(folder),
        "name": Path(folder).name,
        "fingerprint": shards.fingerprint,
        "created": shards.manifest.created,
        **{name: about[name] for name in names if name in about},
        "shards": len(about["shards"]),
        "groups": shards.groups,
        "samples": shards.samples,
        "tokens": shards.tokens,
        "labels": shards.supervised_tokens,
        "bytes": set_bytes(shards.manifest),
        "longest": shards.longest,
        "mean": shards.tokens / shards.samples,
        "quantiles": {f"{share:g}": int(np.quantile(shards.lengths, share, method="higher")) for share in QUANTILES},
        "histogram": about["length_histogram"],
        "kinds": dict(zip(KINDS, (kinds / kinds.sum()).tolist(), strict=True)),
        "kinds_groups": len(counted),
        "vocabulary": shards.vocabulary.to_json() | {"fingerprint": shards.vocabulary.fingerprint},
    }


def choose_samples(total: int, *, count: int, at: int = 0, seed: int | None = None) -> list[int]:
    """Numbers of samples to look at: `count` from number `at` on, or with a seed drawn at random.

    Raises:
        ConfigError: there is no sample of that number.
    """
    if seed is not None:
        return permutation(total, SAMPLES, seed)[:count].tolist()
    if not 0 <= at < total:
        raise ConfigError(f"there is no sample {at}: the set has {total}, numbered from 0", where="--at")
    return list(range(at, min(total, at + count)))


def find_tokenizer(shards: ShardSet) -> Path | None:
    """A tokenizer with the set's vocabulary, in a folder `tokenizer` or `base` beside it or further up."""
    here = shards.folder.resolve()
    for parent in list(here.parents)[:UPWARDS]:
        for folder in (parent / "tokenizer", parent / "base"):
            described = folder / VOCABULARY_FILE
            if described.is_file() and Vocabulary.from_json(read_json(described)) == shards.vocabulary:
                return folder
    return None


def read_samples(shards: ShardSet, numbers: Sequence[int]) -> Iterator[Sample]:
    """Samples by number, in the order asked for.

    Raises:
        DataError: damaged; names shard, group and byte offset.
    """
    sizes = [len(shards.group_lengths(group)) for group in range(shards.groups)]
    first_sample = np.concatenate([[0], np.cumsum(sizes)])
    first_group = np.concatenate([[0], np.cumsum([entry["groups"] for entry in shards.entries])])
    for number in numbers:
        group = int(np.searchsorted(first_sample, number, side="right")) - 1
        shard = int(np.searchsorted(first_group, group, side="right")) - 1
        data = shards.read_group(group)
        ends = np.cumsum(data.lengths, dtype=np.int64)
        within = number - int(first_sample[group])
        stop = int(ends[within])
        start = stop - int(data.lengths[within])
        yield Sample(
            number,
            shards.entries[shard]["file"],
            group - int(first_group[shard]),
            data.ids[start:stop],
            data.mask[start:stop],
        )


def runs_of(sample: Sample, vocabulary: Vocabulary) -> list[Run]:
    """The sample cut where text turns to units or prompt to labels; the runs' ids end to end are the sample's."""
    unit = _is_unit(sample.ids, vocabulary)
    kind = 2 * sample.mask + unit
    cuts = [0, *(np.flatnonzero(np.diff(kind)) + 1).tolist(), len(sample.ids)]
    return [
        Run(bool(unit[start]), bool(sample.mask[start]), sample.ids[start:stop].tolist())
        for start, stop in pairwise(cuts)
    ]


def statistics(
    folder: str | Path, *, groups: int = 1000, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """What a page of statistics shows: `describe_set`, and what reading the tokens tells.

    Args:
        folder: the shard set.
        groups: how many groups at most are read, spread over the set.
        progress: told how many groups were read since the last call.

    Returns:
        `describe_set`'s values, and: `read` (groups, samples, tokens), `lengths` (`edges`, `counts`),
        `places` (at `PLACES` even places of a sample, start to end: which share of the samples has a
        token of each kind there, (places, 4)), `label_shares` (samples by their share of labels, in
        tenths), `units` (`count`, `used`, `perplexity`, `counts` by rank), `text_used` (different text
        tokens), `text_size`, `duplicates` (samples that equal an earlier one), `fill` (row length ->
        `rows`, share filled by best-fit packing (`packed`) and by one sample a row (`alone`)).

    Raises:
        DataError: no shard set, or damaged.
    """
    shards = ShardSet(folder)
    vocabulary = shards.vocabulary
    chosen = _spread(shards.groups, groups)
    kinds, places = np.zeros(4, dtype=np.int64), np.zeros((PLACES, 4), dtype=np.int64)
    frequency = np.zeros(vocabulary.size, dtype=np.int64)
    tenths = np.zeros(10, dtype=np.int64)
    seen: Counter[int] = Counter()
    for number in chosen:
        group = shards.read_group(number)
        lengths = group.lengths.astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        frequency += np.bincount(group.ids, minlength=vocabulary.size)
        kind = 2 * group.mask + _is_unit(group.ids, vocabulary)
        kinds += np.bincount(kind, minlength=4)
        for place in range(PLACES):
            places[place] += np.bincount(kind[starts + lengths * place // PLACES], minlength=4)
        labels = np.add.reduceat(group.mask.astype(np.int64), starts)
        tenths += np.bincount(np.minimum(9, labels * 10 // lengths), minlength=10)
        ids = np.ascontiguousarray(group.ids)
        seen.update(hash(ids[at : at + size].tobytes()) for at, size in zip(starts, lengths, strict=True))
        if progress is not None:
            progress(1)
    return describe_set(folder, groups=1) | {
        "kinds": dict(zip(KINDS, (kinds / kinds.sum()).tolist(), strict=True)),
        "kinds_groups": len(chosen),
        "read": {"groups": len(chosen), "samples": seen.total(), "tokens": int(kinds.sum())},
        "lengths": _histogram(shards.lengths),
        "places": (places / seen.total()).tolist(),
        "label_shares": tenths.tolist(),
        "units": _unit_use(frequency, vocabulary),
        "text_used": int((frequency[: vocabulary.text_size] > 0).sum()),
        "text_size": vocabulary.text_size,
        "duplicates": seen.total() - len(seen),
        "fill": fill_by_length(shards),
    }


def fill_by_length(shards: ShardSet) -> dict[int, dict[str, float]]:
    """For each row length that holds every sample: rows, and the share of them that holds tokens."""
    found = {}
    for capacity in PACK_LENGTHS:
        if capacity < shards.longest:
            continue
        parts = [shards.lengths[at : at + FILL_WINDOW] for at in range(0, shards.samples, FILL_WINDOW)]
        rows = sum(count_rows(part, capacity) for part in parts)
        found[capacity] = {
            "rows": rows,
            "packed": shards.tokens / (rows * capacity),
            "alone": shards.tokens / (shards.samples * capacity),
        }
    return found


def _spread(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, spread evenly; all of them when they are that few."""
    if total <= count:
        return list(range(total))
    return np.linspace(0, total - 1, count).round().astype(int).tolist()


def _is_unit(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    if vocabulary.units is None or vocabulary.first_unit is None:
        return np.zeros(len(ids), dtype=bool)
    return (ids >= vocabulary.first_unit) & (ids < vocabulary.first_unit + vocabulary.units.count)


def _kind_counts(shards: ShardSet, group: int) -> np.ndarray:
    """Tokens of each of `KINDS` in a group, int64, (4,)."""
    data = shards.read_group(group)
    return np.bincount(2 * data.mask + _is_unit(data.ids, shards.vocabulary), minlength=4)


def _histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """Samples per equal range: bin i counts lengths in [edges[i], edges[i + 1])."""
    width = max(1, -(-(int(lengths.max()) + 1) // BINS))
    counts = np.bincount(lengths // width)
    return {"edges": [i * width for i in range(len(counts) + 1)], "counts": counts.tolist()}


def _unit_use(frequency: np.ndarray, vocabulary: Vocabulary) -> dict[str, Any] | None:
    """How evenly the units are used; None without units."""
    if vocabulary.units is None or vocabulary.first_unit is None:
        return None
    counts = np.sort(frequency[vocabulary.first_unit :][: vocabulary.units.count])[::-1]
    shares = counts[counts > 0] / max(1, counts.sum())
    return {
        "count": vocabulary.units.count,
        "used": len(shares),
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
        "counts": counts.tolist(),
    }
