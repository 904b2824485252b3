"""Samples that are never trained on, for measuring the loss while training.

Which ones is decided by a hash of a sample's place: its number in the set, keyed by the set's fingerprint.
So the same samples are held out at every world size, with every seed, and in every stage that reads
the set: what is held out when a stage trains is held out when a later stage replays it. More rows hold out
the same samples and others. Exact copies of a sample in the set are samples of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slm.artifact import digest
from slm.data.packing import count_rows, pack
from slm.data.reader import DamageError, ShardSet
from slm.data.seeded import HELD_OUT
from slm.errors import ConfigError

MOST = 0.5
"""Share of a set's tokens that may be held out."""
CHUNK = 2**20


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples of a set, in the set's order.

    Attributes:
        groups: int64, (n,), ascending: the group of each.
        samples: int64, (n,): its number in the group.
        lengths: int64, (n,): its tokens.
    """

    groups: np.ndarray
    samples: np.ndarray
    lengths: np.ndarray

    def of_group(self, group: int) -> np.ndarray:
        """Numbers of the held-out samples of a group, ascending."""
        start, stop = np.searchsorted(self.groups, [group, group + 1])
        return self.samples[start:stop]

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.lengths.sum())

    @cached_property
    def digest(self) -> str:
        """Tells one selection from another."""
        return digest([self.groups.tolist(), self.samples.tolist()])


def hold_out(shards: ShardSet, rows: int, capacity: int) -> HeldOut:
    """Choose what a set holds out: the samples of the smallest hashes, as many as pack into `rows` rows.

    Args:
        rows: packed rows to hold out.
        capacity: tokens of a row; longer samples are not chosen.

    Raises:
        ConfigError: that is more than half of the set.
    """
    lengths = shards.lengths.astype(np.int64)
    fits = lengths <= capacity
    total = int(lengths[fits].sum())
    if rows * capacity > MOST * total:
        raise ConfigError(
            f"eval.rows: {rows} rows of {capacity} tokens are more than half of the set's {total:,}",
            where=str(shards.folder),
            mend="hold out fewer rows, or build a larger set",
        )
    ordered = _by_hash(shards.fingerprint, lengths, fits, rows * capacity)
    within = int(np.searchsorted(np.cumsum(lengths[ordered]), rows * capacity, side="right"))
    # Packing leaves gaps, so a few samples fewer than the tokens allow.
    count = bisect_right(range(1, within + 1), rows, key=lambda n: count_rows(lengths[ordered[:n]], capacity))
    chosen = np.sort(ordered[: max(count, 1)])
    ends = np.cumsum([len(shards.group_lengths(group)) for group in range(shards.groups)])
    groups = np.searchsorted(ends, chosen, side="right")
    starts = np.concatenate([[0], ends])
    return HeldOut(groups, chosen - starts[groups], lengths[chosen])


def packed_documents(held: HeldOut, capacity: int) -> list[list[int]]:
    """Rows of held-out samples, by their number in `held`."""
    packed = pack(held.lengths, capacity)
    return [packed.items[start:stop].tolist() for start, stop in zip(packed.starts, packed.starts[1:], strict=False)]


def read_documents(
    shards: ShardSet, held: HeldOut, documents: list[int], lost: dict[int, DamageError] | None = None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Ids, label mask and lengths of some held-out samples, end to end.

    Args:
        lost: None: damage is an error. Else documents of damaged groups are left out, and this gets each of them
            with its damage; when none is left, the result is one token without a label.

    Raises:
        DamageError: a damaged group; names shard, group and byte offset.
    """
    ids, masks, lengths = [], [], []
    for document in documents:
        try:
            group = shards.read_group(int(held.groups[document]))
        except DamageError as damage:
            if lost is None:
                raise
            lost[document] = damage
            continue
        stop = int(group.lengths[: held.samples[document] + 1].sum(dtype=np.int64))
        start = stop - int(held.lengths[document])
        ids.append(group.ids[start:stop])
        masks.append(group.mask[start:stop])
        lengths.append(int(held.lengths[document]))
    if not lengths:
        return np.zeros(1, np.int32), np.zeros(1, bool), [1]
    return np.concatenate(ids), np.concatenate(masks), lengths


def _by_hash(fingerprint: str, lengths: np.ndarray, fits: np.ndarray, tokens: int) -> np.ndarray:
    """Numbers of samples that fit, ascending by hash, until they hold `tokens` tokens at least.

    The hash of sample i is the i-th output of PCG64, keyed by the fingerprint; only small hashes are
    sorted, so a set of 10⁸ samples takes a second and little memory.
    """
    share = min(1.0, 2 * tokens / int(lengths[fits].sum()))
    while True:
        limit = np.uint64(share * (2**64 - 2**11))
        source = np.random.PCG64(np.random.SeedSequence([HELD_OUT, int(fingerprint[:32], 16), 1]))
        found, hashes = [], []
        for start in range(0, len(lengths), CHUNK):
            bits = source.random_raw(min(CHUNK, len(lengths) - start))
            small = np.flatnonzero((bits <= limit) & fits[start : start + CHUNK])
            found.append(small + start)
            hashes.append(bits[small])
        numbers = np.concatenate(found)
        if share == 1.0 or lengths[numbers].sum() >= tokens:
            return numbers[np.argsort(np.concatenate(hashes), kind="stable")]
        share = min(1.0, 2 * share)
