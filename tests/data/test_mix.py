"""What a stage's YAML will read, told beforehand, is what its loader reads."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from shard_sets import VOCABULARY, make_samples, make_set

from slm.artifact import write_manifest
from slm.config.loader import from_mapping
from slm.config.stage import StageConfig
from slm.data.build import set_facts
from slm.data.mix import describe_mix, open_sources, stage_loader, stage_sources
from slm.data.writer import ShardWriter
from slm.errors import ConfigError, DataError
from slm.tokens.vocabulary import UnitSet, Vocabulary


@pytest.fixture
def own(tmp_path):
    return str(make_set(tmp_path / "own", make_samples(300)))


@pytest.fixture
def old(tmp_path):
    return str(make_set(tmp_path / "old", make_samples(20, seed=1)))


def stage(own, *replay, **sections):
    values = {
        "stage": "asr",
        "out": "o",
        "model": {"base": "b"},
        "data": {"shards": own, "pack": {"length": 128, "window": 4}},
        "replay": [{"shards": folder, "ratio": ratio} for folder, ratio in replay],
        "batch": {"rows": 4},
        "duration": {"epochs": 1},
    }
    return from_mapping(StageConfig, values | sections, "test")


def test_every_figure_is_what_the_loader_then_reads(own, old):
    config = stage(own, (old, 0.25), duration={"epochs": 2})
    mix = describe_mix(config)
    loader = stage_loader(config)
    rows, samples, tokens = Counter(), Counter(), Counter()
    for step in range(mix["steps"]):
        for row in loader.step(step):
            rows[row.source] += 1
            samples[row.source] += len(row.lengths)
            tokens[row.source] += len(row.ids)
    assert mix["rows"] == rows.total() and mix["tokens"] == tokens.total()
    assert [source["weight"] for source in mix["sources"]] == [4, 1]
    for source in mix["sources"]:
        name = source["name"]
        assert (source["rows"], source["samples"], source["tokens"]) == (rows[name], samples[name], tokens[name])
        assert source["share"] == pytest.approx(tokens[name] / tokens.total())
        assert source["fill"] == pytest.approx(tokens[name] / (rows[name] * 128))
    own_part, old_part = mix["sources"]
    assert own_part["epochs"] == pytest.approx(2, abs=0.1)
    assert old_part["wraps"] == int(old_part["epochs"]) > 1


def test_durations_in_steps_and_tokens(own):
    assert describe_mix(stage(own, duration={"steps": 7}))["steps"] == 7
    tokens = describe_mix(stage(own))["sources"][0]["set_tokens"]
    half = describe_mix(stage(own, duration={"tokens": tokens // 2}))
    assert half["tokens"] == pytest.approx(tokens / 2, abs=4 * 128)  # a step
    with pytest.raises(ConfigError, match="less than one step"):
        describe_mix(stage(own, duration={"tokens": 1}))


def test_labels_are_estimated_from_each_sets_own_share(own):
    mix = describe_mix(stage(own))
    source = mix["sources"][0]
    assert source["labels"] == mix["labels"] == pytest.approx(source["tokens"] / 2, rel=0.05)


def test_sources_of_one_name_are_told_apart(tmp_path):
    a, b = (str(make_set(tmp_path / part / "asr", make_samples(40))) for part in "ab")
    assert [source["name"] for source in describe_mix(stage(a, (b, 0.5)))["sources"]] == ["asr-0", "asr-1"]


def test_all_sources_that_are_missing_are_named(own, tmp_path):
    with pytest.raises(DataError) as caught:
        describe_mix(stage(own, (str(tmp_path / "x"), 0.1), (str(tmp_path / "y"), 0.1)))
    assert "2 of the stage's shard sets" in str(caught.value)
    assert str(tmp_path / "x") in str(caught.value) and str(tmp_path / "y") in str(caught.value)
    with pytest.raises(DataError, match="no finished shards here"):
        describe_mix(stage(str(tmp_path / "x")))


def set_of(folder, vocabulary):
    folder.mkdir()
    with ShardWriter(folder, vocabulary=vocabulary) as writer:
        writer.add([1, 2, 3], [False, True, True])
    write_manifest(folder, "shards", config={}, about=set_facts(writer.entries, writer.length_counts, vocabulary))
    return str(folder)


def test_vocabularies_are_compared_before_any_work(tmp_path, own):
    units = UnitSet(100, 25.0, "mel_kmeans", "0" * 64)
    speech = Vocabulary(VOCABULARY.text_sha256, 1100, 1000, units)
    other_units = dataclasses.replace(speech, units=dataclasses.replace(units, codebook="1" * 64))
    other_text = Vocabulary("o" * 64, 1000)
    a, b, c = (
        set_of(tmp_path / name, vocabulary)
        for name, vocabulary in (("a", speech), ("b", other_units), ("c", other_text))
    )
    describe_mix(stage(own, (a, 1.0), duration={"steps": 1}))  # text trains with units
    with pytest.raises(DataError, match="speech units differ"):
        describe_mix(stage(a, (b, 1.0)))
    with pytest.raises(DataError, match="another tokenizer"):
        describe_mix(stage(a, (c, 1.0)))
    with pytest.raises(DataError, match="the model has none"):
        describe_mix(stage(a), VOCABULARY)
    with pytest.raises(DataError) as caught:
        open_sources(stage_sources(stage(a, (b, 1.0), (c, 1.0))))
    assert b in str(caught.value) and c in str(caught.value)


def test_samples_longer_than_a_row(own):
    with pytest.raises(DataError, match="a row holds 32"):
        describe_mix(stage(own, data={"shards": own, "pack": {"length": 32}}))
