"""Building a shard set: examples through their recipe, chat template and tokenizer into shards."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifact import Manifest, building, write_manifest
from slm.data import format as fmt
from slm.data.writer import SHARD_BYTES, ShardEntry, ShardWriter
from slm.errors import ConfigError, DataError
from slm.stages import Recipe
from slm.tokens.chat import Rendered, Turn, render_many
from slm.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

OVERLONG = ("drop", "truncate_target")
MAX_DROPPED = 0.01
HISTOGRAM_BINS = 32


@dataclass
class Counts:
    """What became of the examples.

    Attributes:
        examples: seen.
        empty: skipped because a column of the prompt or the answer was empty.
        dropped: left out because they were longer than `max_length`.
        truncated: kept with the end of their answer cut off.
    """

    examples: int = 0
    empty: int = 0
    dropped: int = 0
    truncated: int = 0


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
        overlong: what happens to longer ones. `drop` leaves them out; `truncate_target` cuts the end
            of the answer off (its end token too: a model should not learn to stop there) and leaves
            out those whose prompt alone is too long; None is `drop`, and an error above 1 %.
        group_size, shard_bytes: see `ShardWriter`.

    Raises:
        ConfigError: an unknown policy.
        DataError: an example lacks a column; too many are too long; none is left.
        MachineError: no space left.
    """
    if overlong is not None and overlong not in OVERLONG:
        raise ConfigError(f"overlong: expected one of {', '.join(OVERLONG)}, got {overlong!r}")
    counts = Counts()
    with building(out) as scratch:
        with ShardWriter(scratch, vocabulary=vocabulary, group_size=group_size, shard_bytes=shard_bytes) as writer:
            turns = _turns(examples, recipe, counts)
            for sample in render_many(tokenizer, turns):
                fitting = _fit(sample, max_length, overlong, counts)
                if fitting is not None:
                    writer.add(fitting.ids, fitting.supervised)
        _check_counts(counts, max_length, overlong, writer, str(out))
        about = {"recipe": recipe.name, "group_size": group_size, "max_length": max_length, "overlong": overlong}
        about |= asdict(counts) | set_facts(writer.entries, writer.length_counts, vocabulary)
        files = {}
        for entry in writer.entries:
            files[entry.file] = {"size": entry.bytes, "sha256": entry.sha256}
            files[entry.index] = {"size": entry.index_bytes, "sha256": entry.index_sha256}
        manifest = write_manifest(
            scratch, fmt.KIND, config=config, inputs=inputs, about=about, files=files, format=fmt.FORMAT
        )
    _log_counts(counts, about, str(out))
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


def _turns(examples: Iterable[Mapping[str, Any]], recipe: Recipe, counts: Counts) -> Iterator[Turn]:
    for example in examples:
        counts.examples += 1
        if any(_is_empty(example, column) for column in recipe.columns):
            counts.empty += 1
            continue
        turn = recipe.turn(example)
        if turn.answer.strip():
            yield turn
        else:
            counts.empty += 1


def _is_empty(example: Mapping[str, Any], column: str) -> bool:
    """Whether a column is there but holds nothing; one that is not there at all is the recipe's error."""
    if column not in example:
        return False
    value = example[column]
    return value is None or len(value.strip() if isinstance(value, str) else value) == 0


def _fit(sample: Rendered, max_length: int, overlong: str | None, counts: Counts) -> Rendered | None:
    if len(sample.ids) <= max_length:
        return sample
    if overlong == "truncate_target" and any(sample.supervised[:max_length]):
        counts.truncated += 1
        return Rendered(sample.ids[:max_length], sample.supervised[:max_length])
    counts.dropped += 1
    return None


def _check_counts(counts: Counts, max_length: int, overlong: str | None, writer: ShardWriter, where: str) -> None:
    if not writer.entries:
        raise DataError(
            f"no sample is left of {counts.examples} examples ({counts.empty} empty, {counts.dropped} too long)",
            where=where,
        )
    if overlong is None and counts.dropped > MAX_DROPPED * counts.examples:
        raise DataError(
            f"{counts.dropped} of {counts.examples} examples are longer than max_length = {max_length} tokens",
            where=where,
            mend="raise max_length, or set overlong: drop or truncate_target to accept it",
        )


def _log_counts(counts: Counts, about: Mapping[str, Any], where: str) -> None:
    log.info("%s: %d samples, %d tokens", where, about["samples"], about["tokens"])
    if counts.empty or counts.dropped or counts.truncated:
        log.warning(
            "%s: of %d examples, %d were empty and skipped, %d too long and dropped, %d cut short",
            where, counts.examples, counts.empty, counts.dropped, counts.truncated,
        )  # fmt: skip
