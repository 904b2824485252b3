"""Examples to shards: what is kept, what is left out, and that it is said."""

from __future__ import annotations

import errno
import logging
import os

import numpy as np
import pytest

from slm.artifact import read_manifest, verify
from slm.data.build import build_shards, length_histogram
from slm.data.reader import ShardSet
from slm.errors import ConfigError, DataError, MachineError
from slm.stages import RECIPES
from slm.tokens.chat import render
from slm.tokens.vocabulary import load_tokenizer

EXAMPLES = [{"input": f"what is the capital of france {i}", "output": f"paris {i}"} for i in range(40)]


@pytest.fixture
def build(tmp_path, pico_tokenizer):
    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)

    def run(examples, recipe="llm", name="set", **changes):
        arguments = {"max_length": 200, "group_size": 16, "config": {"recipe": recipe}, "inputs": {"tokenizer": "f"}}
        return build_shards(
            examples,
            recipe=RECIPES[recipe],
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            out=tmp_path / name,
            **(arguments | changes),
        )

    run.tokenizer, run.vocabulary, run.folder = tokenizer, vocabulary, tmp_path
    return run


def samples_of(folder):
    shards = ShardSet(folder)
    for number in range(shards.groups):
        group = shards.read_group(number)
        cuts = np.cumsum(group.lengths)[:-1]
        yield from zip(np.split(group.ids, cuts), np.split(group.mask, cuts), strict=True)


def test_samples_are_the_rendered_turns(build):
    build(EXAMPLES)
    found = list(samples_of(build.folder / "set"))
    for (ids, mask), example in zip(found, EXAMPLES, strict=True):
        wanted = render(build.tokenizer, RECIPES["llm"].turn(example))
        assert (ids.tolist(), mask.tolist()) == (wanted.ids, wanted.supervised)


def test_units_become_ids_of_the_vocabulary(build):
    example = {"instruction": "write this", "discrete_unit": [3, 15, 0], "transcription": "paris"}
    build([example] * 3, "asr")
    ids, mask = next(samples_of(build.folder / "set"))
    assert build.vocabulary.to_units(ids) == [3, 15, 0] and build.vocabulary.to_units(ids[mask]) == []


def test_the_manifest_says_what_is_in_it(build):
    manifest = build(EXAMPLES)
    about, shards = manifest.about, ShardSet(build.folder / "set")
    assert manifest == read_manifest(build.folder / "set", "shards")
    assert (about["samples"], about["examples"], about["groups"]) == (40, 40, 3)
    assert about["tokens"] == shards.lengths.sum() and about["longest"] == shards.lengths.max()
    assert 0 < about["supervised_tokens"] < about["tokens"]
    assert sum(about["length_histogram"]["counts"]) == 40
    assert sorted(manifest.files) == ["shard-000000.idx", "shard-000000.tar"]
    assert verify(build.folder / "set") == manifest


def test_the_same_examples_give_the_same_fingerprint(build):
    first, again = build(EXAMPLES, name="a"), build(iter(EXAMPLES), name="b")
    assert first.fingerprint == again.fingerprint != build(EXAMPLES[1:], name="c").fingerprint


def test_empty_targets_are_skipped_counted_and_said(build, caplog):
    empty = [{"input": "x", "output": ""}, {"input": "x", "output": " \n"}, {"input": "x", "output": None}]
    with caplog.at_level(logging.WARNING):
        about = build([*EXAMPLES, *empty]).about
    assert (about["samples"], about["empty"], about["examples"]) == (40, 3, 43)
    assert "3 were empty" in caplog.text


def test_a_missing_column_is_an_error_and_leaves_nothing(build):
    with pytest.raises(DataError, match="'output' is missing"):
        build([*EXAMPLES, {"input": "x"}])
    assert list(build.folder.glob("*set*")) == []


LONG = {"input": "two", "output": "cat " * 300}


def test_too_many_long_samples_are_an_error_unless_accepted(build):
    with pytest.raises(DataError, match="1 of 41 examples are longer than max_length = 200") as caught:
        build([*EXAMPLES, LONG])
    assert "overlong" in caught.value.mend
    assert not (build.folder / "set").exists()
    about = build([*EXAMPLES, LONG], overlong="drop").about
    assert (about["samples"], about["dropped"]) == (40, 1)


def test_a_few_long_samples_are_dropped_and_counted(build):
    about = build([*EXAMPLES * 3, LONG]).about
    assert (about["samples"], about["dropped"], about["truncated"]) == (120, 1, 0)
    assert about["longest"] <= 200


def test_truncating_keeps_the_prompt_and_the_start_of_the_answer(build):
    about = build([LONG, *EXAMPLES], overlong="truncate_target").about
    assert (about["samples"], about["dropped"], about["truncated"]) == (41, 0, 1)
    ids, mask = next(samples_of(build.folder / "set"))
    whole = render(build.tokenizer, RECIPES["llm"].turn(LONG))
    assert ids.tolist() == whole.ids[:200] and mask.tolist() == whole.supervised[:200]


def test_a_prompt_too_long_by_itself_is_dropped_when_truncating(build):
    long_prompt = {"input": "cat " * 300, "output": "paris"}
    about = build([long_prompt, *EXAMPLES], overlong="truncate_target").about
    assert (about["samples"], about["dropped"], about["truncated"]) == (40, 1, 0)


def test_nothing_left_and_unknown_policy(build):
    with pytest.raises(DataError, match="no sample is left"):
        build([])
    with pytest.raises(ConfigError, match="overlong"):
        build(EXAMPLES, overlong="cut")


def test_bins_of_the_histogram():
    assert length_histogram({1: 2, 32: 1, 33: 5, 64: 1}) == {
        "edges": list(range(0, 65, 2)),
        "counts": [2, *[0] * 14, 1, 5, *[0] * 14, 1],
    }
    assert length_histogram({3: 4}) == {"edges": [0, 1, 2, 3], "counts": [0, 0, 4]}


def test_a_full_disk_is_named_and_leaves_the_old_set(build, monkeypatch):
    before = build(EXAMPLES)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="no space left"):
        build(EXAMPLES[:30])
    assert read_manifest(build.folder / "set") == before
    assert [path.name for path in build.folder.iterdir()] == ["set"]
