"""Counts, kinds of tokens, samples by number and statistics, against the samples that were written."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make_samples, make_set

from slm.artifact import write_manifest
from slm.data.build import set_facts
from slm.data.inspect import (
    KINDS,
    Sample,
    choose_samples,
    describe_set,
    find_tokenizer,
    read_samples,
    runs_of,
    statistics,
)
from slm.data.reader import ShardSet
from slm.data.writer import ShardWriter
from slm.errors import ConfigError
from slm.tokens.vocabulary import UnitSet, Vocabulary

SPEECH = Vocabulary("t" * 64, 1000, 900, UnitSet(100, 25.0, "mel_kmeans", "0" * 64))


@pytest.fixture
def speech_set(tmp_path, samples):
    """The samples of the plain set, read as text below 900 and units from there on."""
    folder = tmp_path / "speech"
    folder.mkdir()
    with ShardWriter(folder, vocabulary=SPEECH, group_size=8, shard_bytes=20_000) as writer:
        for ids, mask in samples:
            writer.add(ids, mask)
    about = set_facts(writer.entries, writer.length_counts, SPEECH)
    write_manifest(folder, "shards", config={}, about=about)
    return folder


def kinds_of(samples):
    ids, mask = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    unit = ids >= 900
    counts = [(~mask & ~unit).sum(), (~mask & unit).sum(), (mask & ~unit).sum(), (mask & unit).sum()]
    return dict(zip(KINDS, (np.array(counts) / len(ids)).tolist(), strict=True))


def test_a_description_counts_what_was_written(speech_set, samples):
    lengths = np.array([len(ids) for ids, _ in samples])
    facts = describe_set(speech_set)
    assert (facts["samples"], facts["tokens"], facts["longest"]) == (100, lengths.sum(), lengths.max())
    assert facts["labels"] == sum(int(mask.sum()) for _, mask in samples)
    assert facts["mean"] == pytest.approx(lengths.mean())
    assert facts["quantiles"]["0.5"] == sorted(lengths)[len(lengths) // 2]
    assert facts["kinds_groups"] == facts["groups"] == 13
    assert facts["kinds"] == pytest.approx(kinds_of(samples))
    on_disk = sum(path.stat().st_size for path in speech_set.iterdir() if path.name != "MANIFEST.json")
    assert facts["bytes"] == on_disk


def test_kinds_are_estimated_from_groups_spread_over_the_set(speech_set, samples):
    facts = describe_set(speech_set, groups=3)
    assert facts["kinds_groups"] == 3
    assert facts["kinds"] == pytest.approx(kinds_of([*samples[0:8], *samples[48:56], *samples[96:100]]))


def test_samples_by_number_in_the_order_asked_for(speech_set, samples):
    shards = ShardSet(speech_set)
    asked = [99, 0, 8, 7, 50, 0]
    for number, sample in zip(asked, read_samples(shards, asked), strict=True):
        assert sample.number == number
        np.testing.assert_array_equal(sample.ids, samples[number][0])
        np.testing.assert_array_equal(sample.mask, samples[number][1])
        shard = int(sample.file[6:12])
        entries = shards.entries[:shard]
        assert sum(entry["groups"] for entry in entries) + sample.group == number // 8


def test_which_samples_are_looked_at():
    assert choose_samples(10, count=3, at=4) == [4, 5, 6]
    assert choose_samples(10, count=3, at=9) == [9]
    drawn = choose_samples(10, count=4, seed=1)
    assert len({*drawn}) == 4 and drawn == choose_samples(10, count=4, seed=1) != choose_samples(10, count=4, seed=2)
    for at in (10, -1):
        with pytest.raises(ConfigError, match="no sample"):
            choose_samples(10, count=1, at=at)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(880, 919), st.booleans()), min_size=1, max_size=40))
def test_runs_are_the_sample_cut_at_every_change_of_kind(tokens):
    ids = np.array([token for token, _ in tokens], dtype=np.int32)
    mask = np.array([label for _, label in tokens])
    runs = runs_of(Sample(0, "", 0, ids, mask), SPEECH)
    assert [token for run in runs for token in run.ids] == ids.tolist()
    assert [run.label for run in runs for _ in run.ids] == mask.tolist()
    assert [run.unit for run in runs for _ in run.ids] == (ids >= 900).tolist()
    assert all((a.unit, a.label) != (b.unit, b.label) for a, b in pairwise(runs))


def test_statistics_against_a_count_by_hand(speech_set, samples):
    told = []
    found = statistics(speech_set, progress=told.append)
    ids = np.concatenate([ids for ids, _ in samples])
    units = ids[ids >= 900]
    assert sum(told) == 13 and found["read"] == {"groups": 13, "samples": 100, "tokens": len(ids)}
    assert found["kinds"] == pytest.approx(kinds_of(samples))
    assert found["units"]["used"] == len(np.unique(units)) and sum(found["units"]["counts"]) == len(units)
    shares = np.unique(units, return_counts=True)[1] / len(units)
    assert found["units"]["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found["text_used"] == len(np.unique(ids[ids < 900]))
    assert found["duplicates"] == 0
    assert sum(found["lengths"]["counts"]) == sum(found["label_shares"]) == 100
    first = found["places"][0]
    assert first == pytest.approx(
        [
            np.mean([(mask[0] == label) & ((ids[0] >= 900) == unit) for ids, mask in samples])
            for label, unit in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
    )
    assert np.allclose(np.sum(found["places"], axis=1), 1)
    for capacity, fill in found["fill"].items():
        assert fill["packed"] == pytest.approx(len(ids) / (fill["rows"] * capacity))
        assert -(-len(ids) // capacity) <= fill["rows"] <= 100


def test_equal_samples_are_counted(tmp_path):
    samples = make_samples(20)
    folder = make_set(tmp_path / "set", [*samples, *samples[:5], samples[0]])
    assert statistics(folder)["duplicates"] == 6


def test_a_set_without_units(shard_set):
    found = statistics(shard_set, groups=2)
    assert found["units"] is None and found["kinds"]["prompt units"] == found["kinds"]["label units"] == 0
    assert found["read"]["groups"] == 2


def test_the_tokenizer_beside_the_shards_is_found_if_it_is_theirs(tmp_path, pico_tokenizer, speech_set):
    from slm.tokens.vocabulary import load_tokenizer, save_tokenizer

    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    save_tokenizer(tmp_path / "data" / "tokenizer", tokenizer, vocabulary)
    folder = tmp_path / "data" / "shards" / "asr"
    folder.mkdir(parents=True)
    with ShardWriter(folder, vocabulary=vocabulary) as writer:
        writer.add([1, 2], [False, True])
    write_manifest(folder, "shards", config={}, about=set_facts(writer.entries, writer.length_counts, vocabulary))
    assert find_tokenizer(ShardSet(folder)) == (tmp_path / "data" / "tokenizer").resolve()
    assert find_tokenizer(ShardSet(speech_set)) is None
