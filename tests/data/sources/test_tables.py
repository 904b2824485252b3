"""Rows of JSON Lines, Parquet and Hugging Face data sets: ranges, columns, types, and what bad ones are called."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_sets import UNITS, ls960_rows, magpie_rows, save_magpie, write_jsonl

from slm.config.loader import from_mapping
from slm.config.shards import ShardsJob
from slm.data.sources import open_source
from slm.data.sources.columns import Columns
from slm.errors import DataError

UNITS_SECTION = {
    "count": 10_000, "rate_hz": 50, "extractor": "xlsr_kmeans", "codebook": "a5" * 32, "input": "kept",
    "output": "removed",
}  # fmt: skip


def make_job(recipe: str, source: dict, **changes) -> ShardsJob:
    values = {"job": "shards", "out": "o", "tokenizer": "t", "recipe": recipe, "source": source}
    if recipe != "llm":
        values["units"] = UNITS_SECTION | changes.pop("units", {})
    return from_mapping(ShardsJob, values | changes, "test")


def read(job, start=0, stop=None, piece=0, units=UNITS):
    source = open_source(job, None if job.units is None else units)
    source.pieces()
    return list(source.read(piece, start, stop, start))


def as_source(kind: str, folder, rows) -> dict:
    """The same rows as a source of each kind."""
    import datasets

    if kind == "jsonl":
        return {"kind": kind, "path": str(write_jsonl(folder / "rows.jsonl", rows))}
    loaded = datasets.Dataset.from_list(rows)
    if kind == "parquet":
        loaded.to_parquet(str(folder / "rows.parquet"), batch_size=7)
        return {"kind": kind, "path": str(folder / "rows.parquet")}
    loaded.save_to_disk(str(folder / "saved"))
    return {"kind": "hf", "path": str(folder / "saved"), "streaming": kind == "streamed"}


KINDS = ("jsonl", "parquet", "hf", "streamed")


@pytest.mark.parametrize("kind", KINDS)
def test_any_range_of_rows_is_read(kind, tmp_path):
    rows = ls960_rows(30)
    job = make_job("asr", as_source(kind, tmp_path, rows))
    source = open_source(job, UNITS)
    (piece,) = source.pieces()
    assert piece.rows == (None if kind == "streamed" else 30)
    wanted = [{name: row[name] for name in ("instruction", "discrete_unit", "transcription")} for row in rows]
    assert list(source.read(0, 0, None, 0)) == wanted
    for start, stop in ((0, 1), (3, 21), (6, 7), (7, 14), (29, 30), (12, 12)):
        assert list(open_source(job, UNITS).read(0, start, stop, start)) == wanted[start:stop]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 60), mark=st.integers(1, 9), block=st.integers(1, 300), ended=st.booleans())
def test_json_lines_are_found_wherever_blocks_and_marks_fall(count, mark, block, ended, tmp_path, monkeypatch):
    from slm.data.sources import jsonl

    monkeypatch.setattr(jsonl, "MARK_EVERY", mark)
    monkeypatch.setattr(jsonl, "BLOCK", block)
    rows = [{"input": f"q{i}" * (i % 5 + 1), "output": f"a{i}"} for i in range(count)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    if not ended:
        path.write_text(path.read_text()[:-1])
    job = make_job("llm", {"kind": "jsonl", "path": str(path)})
    assert open_source(job, None).pieces()[0].rows == count
    for start in {0, count // 3, count // 2, count - 1}:
        assert list(open_source(job, None).read(0, start, count, start)) == rows[start:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_is_named_with_those_that_are_there(kind, tmp_path):
    rows = [{"instruction": "x", "units": [1], "transcription": "y"}]
    source = as_source(kind, tmp_path, rows)
    with pytest.raises(DataError, match="column 'discrete_unit' is missing") as caught:
        read(make_job("asr", source))
    assert source["path"] in caught.value.where
    found = read(make_job("asr", source | {"rename": {"units": "discrete_unit"}}))
    assert found == [{"instruction": "x", "discrete_unit": [1], "transcription": "y"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"discrete_unit": "1 2"}, "'discrete_unit' holds a str, expected a list of units"),
        ({"discrete_unit": [1.5, 2.0]}, "'discrete_unit' holds a list of other things than whole numbers"),
        ({"discrete_unit": [[1], [2]]}, "'discrete_unit' holds a list of other things"),
        ({"discrete_unit": [[1], [2, 3]]}, "'discrete_unit' holds a list of other things"),
        ({"discrete_unit": ["a"]}, "'discrete_unit' holds a list of other things"),
        ({"discrete_unit": [3, 10_000]}, "'discrete_unit' has units 3..10000, units.count says 10000"),
        ({"discrete_unit": [-1]}, "'discrete_unit' has units -1..-1"),
        ({"transcription": 7}, "'transcription' holds a number, expected text"),
        ({"instruction": ["x"]}, "'instruction' holds a list, expected text"),
    ],
)
def test_a_value_of_the_wrong_type_names_row_and_column(change, message, tmp_path):
    rows = ls960_rows(3)
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows[:2], rows[2] | change])
    with pytest.raises(DataError, match=message) as caught:
        read(make_job("asr", {"kind": "jsonl", "path": str(path)}))
    assert caught.value.where == f"jsonl source {path} line 3"


def test_woven_answers_are_held_to_the_declaration(tmp_path):
    row = {"transcription": "the cat", "interleaf": "the<|5|><|5|> cat<|9|>"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    source = {"kind": "jsonl", "path": str(path)}
    with pytest.raises(DataError, match="'interleaf' repeats unit 5, but units"):
        read(make_job("tts", source))
    kept = {"input": "kept", "output": "kept"}
    assert (
        read(make_job("tts", source, units=kept), units=replace(UNITS, output="kept"))[0]["interleaf"]
        == row["interleaf"]
    )
    write_jsonl(path, [row | {"interleaf": "the<|12000|> cat"}])
    with pytest.raises(DataError, match="'interleaf' has units 12000"):
        read(make_job("tts", source))
    write_jsonl(path, [row | {"interleaf": "the cat"}])
    assert read(make_job("tts", source))[0]["interleaf"] == "", "nothing is spoken: counted as empty"


def test_declared_input_repeats_are_removed_where_the_data_has_them(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"instruction": "x", "discrete_unit": [1, 1, 2], "transcription": "y"}]
    )
    job = make_job("asr", {"kind": "jsonl", "path": str(path)}, units={"input": "removed"})
    assert read(job, units=replace(UNITS, input="removed"))[0]["discrete_unit"] == [1, 2]


def test_wordings_by_row_follow_the_row_and_not_the_part(tmp_path):
    rows = ls960_rows(25)
    job = make_job("tts", {"kind": "jsonl", "path": str(write_jsonl(tmp_path / "r.jsonl", rows))})
    whole = read(job)
    assert read(job, 11, 17) == whole[11:17]
    assert len({example["instruction"] for example in whole}) == 10
    own = make_job("tts", {"kind": "jsonl", "path": str(tmp_path / "r.jsonl"), "wording": "column"})
    assert [example["instruction"] for example in read(own)] == [row["instruction"] for row in rows]


def test_rows_are_left_out_by_value_and_null_leaves_out_none(tmp_path):
    rows = magpie_rows(10, 3)
    folder = save_magpie(tmp_path / "set", rows)
    source = {"kind": "parquet", "path": str(folder / "data" / "*.parquet")}
    source["rename"] = {"output_7306_interleaf": "output_interleaf"}
    job = make_job("sqa", source | {"leave_out": {"task_category": ["Math"]}})
    found = [example for piece in (0, 1) for example in read(job, piece=piece)]
    assert [example is None for example in found] == [row["task_category"] == "Math" for row in rows]
    everything = make_job("sqa", source | {"leave_out": None})
    assert None not in read(everything) and set(read(everything)[0]) == {
        "input_unit", "input_pseudo", "output_pseudo", "output_interleaf",
    }  # fmt: skip
    nameless = make_job("sqa", source | {"leave_out": {"topic": ["Math"]}})
    with pytest.raises(DataError, match="column 'topic' is missing"):
        read(nameless)


def test_only_the_columns_of_the_recipe_are_read():
    job = make_job("sqa", {"kind": "hf", "path": "x", "rename": {"output_7306_interleaf": "output_interleaf"}})
    assert set(Columns(job, UNITS).needed) == {"input_unit", "input_pseudo", "output_pseudo", "output_7306_interleaf"}


def test_files_that_are_not_what_they_say(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "a", "output": "b"}\n{"input": \n')
    with pytest.raises(DataError, match="not valid JSON") as caught:
        read(make_job("llm", {"kind": "jsonl", "path": str(bad)}))
    assert caught.value.where.endswith("bad.jsonl line 2")
    bad.write_text("[1, 2]\n")
    with pytest.raises(DataError, match="expected an object of columns, found a list"):
        read(make_job("llm", {"kind": "jsonl", "path": str(bad)}))
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(make_job("llm", {"kind": "parquet", "path": str(tmp_path / "bad.parquet")}))
    with pytest.raises(DataError, match="no such file"):
        read(make_job("llm", {"kind": "parquet", "path": str(tmp_path / "none*.parquet")}))
    with pytest.raises(DataError, match="can't be loaded"):
        read(make_job("llm", {"kind": "hf", "path": str(tmp_path / "nowhere")}))
    with pytest.raises(DataError, match="can't be loaded") as caught:
        read(make_job("llm", {"kind": "hf", "path": "nobody/nothing"}))  # offline: the Hub is not there
    assert caught.value.where == "hf source nobody/nothing" and "HF_TOKEN" in caught.value.mend


def test_splits_and_streams_of_saved_data_sets(tmp_path):
    import datasets

    rows = [{"input": f"{i}", "output": "x"} for i in range(6)]
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:2])}
    )
    both.save_to_disk(str(tmp_path / "both"), num_shards={"train": 3, "test": 1})
    source = {"kind": "hf", "path": str(tmp_path / "both")}
    assert read(make_job("llm", source)) == rows and read(make_job("llm", source | {"split": "test"})) == rows[:2]
    with pytest.raises(DataError, match="no split 'dev'; there are: train, test"):
        read(make_job("llm", source | {"split": "dev"}))
    streamed = open_source(make_job("llm", source | {"streaming": True}), None)
    pieces = streamed.pieces()
    assert [piece.rows for piece in pieces] == [None] * 3
    assert [row for piece in range(3) for row in streamed.read(piece, 0, None, 0)] == rows
    assert json.dumps(list(streamed.read(1, 1, 2, 1))) == json.dumps(rows[3:4])
