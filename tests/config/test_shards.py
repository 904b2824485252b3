"""Shard jobs: what is refused, with its line; what identifies a set and what does not."""

from __future__ import annotations

from typing import get_args

import pytest

from slm.config.jobs import load_data_job
from slm.config.loader import from_mapping
from slm.config.shards import HfSource, ShardsJob
from slm.data.samples import OVERLONG
from slm.errors import ConfigError, DataError
from slm.stages import RECIPES

UNITS = {
    "count": 16, "rate_hz": 25, "extractor": "mel_kmeans", "codebook": "as_tokenizer", "input": "kept",
    "output": "removed",
}  # fmt: skip


def make(recipe: str = "llm", **changes) -> ShardsJob:
    values = {"job": "shards", "out": "o", "tokenizer": "t", "recipe": recipe}
    values["source"] = {"kind": "jsonl", "path": "x.jsonl"}
    return from_mapping(ShardsJob, values | ({} if recipe == "llm" else {"units": UNITS}) | changes, "file")


def test_the_schema_names_the_recipes_and_policies_that_there_are():
    fields = ShardsJob.model_fields
    assert set(get_args(fields["recipe"].annotation)) == set(RECIPES)
    policies = next(part for part in get_args(fields["overlong"].annotation) if get_args(part))
    assert set(get_args(policies)) == set(OVERLONG)


@pytest.mark.parametrize(
    ("value", "numbers"),
    [("0-3", [0, 1, 2, 3]), (5, [5]), ([0, "2-3"], [0, 2, 3]), ("0, 4-5", [0, 4, 5])],
)
def test_ranges_of_chunks(value, numbers):
    source = make(source={"kind": "hf", "path": "a_{chunk}", "chunks": value}).source
    assert isinstance(source, HfSource) and source.chunks == numbers
    assert source.paths() == [f"a_{number}" for number in numbers]


def test_ranks_and_chunks_go_by_rank():
    source = make(source={"kind": "hf", "path": "r{rank}c{chunk}", "ranks": [1, 0], "chunks": "0-1"}).source
    assert source.paths() == ["r1c0", "r1c1", "r0c0", "r0c1"]


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("asr", {"units": None}, "recipe asr needs units"),
        ("llm", {"units": UNITS}, "recipe llm must not have units"),
        ("asr", {"units": UNITS | {"codebook": "abc"}}, "units.codebook"),
        ("asr", {"units": {k: v for k, v in UNITS.items() if k != "output"}}, "units.output: is required"),
        ("asr", {"overlong": "split_at_segment"}, "split_at_segment is for tts"),
        ("sqa", {"overlong": "split_at_segment"}, "split_at_segment is for tts"),
        ("llm", {"source": {"kind": "csv", "path": "x"}}, "needs kind: one of"),
        ("llm", {"source": {"kind": "hf", "path": "x", "chunks": "0-9"}}, "path and chunks go together"),
        ("llm", {"source": {"kind": "hf", "path": "x{chunk}"}}, "path and chunks go together"),
        ("llm", {"source": {"kind": "hf", "path": "x{chunk}", "chunks": "9-0"}}, "runs backwards"),
        ("llm", {"source": {"kind": "hf", "path": "x{chunk}", "chunks": "a"}}, "expected numbers or ranges"),
        ("llm", {"source": {"kind": "hf", "path": "x", "streaming": True, "rows": 5}}, "known size"),
        ("llm", {"source": {"kind": "hf", "path": "x", "colums": 5}}, "unknown key"),
        ("sqa", {"source": {"kind": "audio", "path": "x", "speech": "s"}}, "columns of asr and tts, not of sqa"),
        ("tts", {"source": {"kind": "audio", "path": "x", "speech": "s"}}, "tts needs alignments"),
        ("llm", {"group": 0}, "group"),
        ("llm", {"compress": "gzip"}, "compress"),
    ],
)
def test_what_can_not_be_is_refused(recipe, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(recipe, **changes)


def test_where_things_lie_and_how_many_work_is_no_part_of_the_identity():
    one = make(workers=1, out="a", tokenizer="b", source={"kind": "jsonl", "path": "c"})
    two = make(workers=9, out="x", tokenizer="y", source={"kind": "jsonl", "path": "z"}, compress="zstd")
    assert one.identity() == two.identity() and (one.kind, two.kind) == ("shards", "cold-shards")
    for changes in ({"part": 5}, {"group": 1}, {"max_length": 99}, {"shard_mib": 1}, {"overlong": "drop"}):
        assert make(**changes).identity() != one.identity()
    fast = {"kind": "audio", "path": "x", "speech": "s"}
    assert make("asr", source=fast).identity() == make("asr", source=fast | {"batch": 99}).identity()
    assert make("asr", source=fast).identity() != make("asr", source=fast | {"case": "lower"}).identity()


def test_a_source_is_known_by_its_files(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "a.jsonl").write_text("1")
    job = make(tokenizer=str(tmp_path), source={"kind": "jsonl", "path": f"{tmp_path}/*.jsonl"})
    first = job.fingerprints()
    assert set(first) == {"tokenizer", "source"} and first == job.fingerprints()
    (tmp_path / "a.jsonl").write_text("2")
    assert job.fingerprints()["source"] != first["source"]
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert job.fingerprints()["tokenizer"] != first["tokenizer"]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer\.json here"):
        job.fingerprints()


def test_a_data_set_on_the_hub_is_known_by_name_and_revision():
    names = [make(source={"kind": "hf", "path": "a/b", "revision": r}).source.fingerprint() for r in ("x", "y", "x")]
    assert names[0] == names[2] != names[1]


def test_a_job_of_no_kind_is_told_with_its_line(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("out: x\njob: shard\n")
    with pytest.raises(ConfigError, match=r"job\.yaml:2: job: expected one of .*shards, tiny, units, got 'shard'"):
        load_data_job(str(path))
