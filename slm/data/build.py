"""Building a shard set: examples through their recipe, chat template and tokenizer into shards."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifact import Manifest, building, write_manifest
from slm.data import format as fmt
from slm.data.samples import Counts, Sampler, check_dropped, describe
from slm.data.writer import SHARD_BYTES, ShardEntry, ShardWriter
from slm.errors import DataError
from slm.stages import Recipe
from slm.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

HISTOGRAM_BINS = 32


def build_shards(
    examples: Iterable[Mapping[str, Any]],
    *,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: Vocabulary,
    out: str | Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    max_length: int,
    overlong: str | None = None,
    group_size: int = fmt.GROUP_SIZE,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Write a shard set; `out` appears when it is complete and replaces an older one.

    Args:
        examples: mappings that hold the recipe's columns, in the order they are to be stored.
        recipe: how an example becomes a prompt and an answer.
        tokenizer, vocabulary: of the ids.
        out: folder of the set.
        config, inputs: what the manifest records and is compared with next time.
        max_length: tokens of a sample at most.
        overlong: what happens to longer ones, see `Sampler`; None is `drop`, and an error above 1 %.
        group_size, shard_bytes: see `ShardWriter`.

    Raises:
        ConfigError: an unknown policy.
        DataError: an example lacks a column; too many are too long; none is left.
        MachineError: no space left.
    """
    sampler = Sampler(recipe, tokenizer, max_length=max_length, overlong=overlong)
    with building(out) as scratch:
        with ShardWriter(scratch, vocabulary=vocabulary, group_size=group_size, shard_bytes=shard_bytes) as writer:
            for sample in sampler.samples(examples):
                writer.add(sample.ids, sample.supervised)
        counts = sampler.counts
        check_counts(counts, max_length=max_length, overlong=overlong, entries=writer.entries, where=str(out))
        about = {"recipe": recipe.name, "group_size": group_size, "max_length": max_length, "overlong": overlong}
        about |= counts.to_json() | set_facts(writer.entries, writer.length_counts, vocabulary)
        files = files_of(writer.entries)
        manifest = write_manifest(
            scratch, fmt.KIND, config=config, inputs=inputs, about=about, files=files, format=fmt.FORMAT
        )
    log_counts(counts, about, str(out))
    return manifest


def set_facts(entries: list[ShardEntry], length_counts: Mapping[int, int], vocabulary: Vocabulary) -> dict[str, Any]:
    """What a set's manifest says of its shards: `ShardSet` reads it back."""
    facts: dict[str, Any] = {
        name: sum(getattr(entry, name) for entry in entries)
        for name in ("samples", "tokens", "supervised_tokens", "groups")
    }
    return facts | {
        "longest": max(length_counts, default=0),
        "length_histogram": length_histogram(length_counts),
        "vocabulary": vocabulary.to_json(),
        "shards": [entry.to_json() for entry in entries],
    }


def length_histogram(length_counts: Mapping[int, int]) -> dict[str, list[int]]:
    """Samples per equal range of lengths: bin i counts lengths in (edges[i], edges[i + 1]]."""
    width = max(1, math.ceil(max(length_counts, default=1) / HISTOGRAM_BINS))
    bins = Counter[int]()
    for length, count in length_counts.items():
        bins[(length - 1) // width] += count
    used = max(bins, default=0) + 1
    return {"edges": [i * width for i in range(used + 1)], "counts": [bins[i] for i in range(used)]}


def files_of(entries: Iterable[ShardEntry]) -> dict[str, dict[str, Any]]:
    """A manifest's `files`: what was hashed while it was written is not hashed again."""
    files = {}
    for entry in entries:
        files[entry.file] = {"size": entry.bytes, "sha256": entry.sha256}
        files[entry.index] = {"size": entry.index_bytes, "sha256": entry.index_sha256}
    return files


def check_counts(
    counts: Counts, *, max_length: int, overlong: str | None, entries: Sequence[ShardEntry], where: str
) -> None:
    """Whether a set may be sealed.

    Raises:
        DataError: no sample is left, or too many were dropped.
    """
    if not entries:
        raise DataError(
            f"no sample is left of {counts.examples} examples ({counts.empty} empty, {counts.dropped} too long"
            + (f", {counts.left_out} left out by the filter)" if counts.left_out else ")"),
            where=where,
        )
    check_dropped(counts, of=counts.examples, max_length=max_length, overlong=overlong, where=where)


def log_counts(counts: Counts, about: Mapping[str, Any], where: str) -> None:
    """Say what a finished set holds, and warn of what it does not."""
    log.info("%s: %d samples, %d tokens", where, about["samples"], about["tokens"])
    lost = describe(counts)
    if lost:
        log.warning("%s: %s", where, lost)
