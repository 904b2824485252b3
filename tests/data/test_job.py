"""The shipped jobs on small copies of the published sets: rows, units, counts."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from published_sets import (
    UNITS,
    ls960_rows,
    magpie_rows,
    samples_of,
    save_magpie,
    save_units_tokenizer,
    shipped,
    write_jsonl,
)

from slm.artifact import read_manifest
from slm.data.job import build_shard_set
from slm.data.reader import ShardSet
from slm.errors import DataError
from slm.stages import RECIPES
from slm.stages.wordings import TTS_WORDINGS
from slm.tokens.chat import decode, render
from slm.tokens.vocabulary import load_tokenizer

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("hf_cache")


def texts_of(folder, tokenizer_folder):
    """(prompt, answer) of every sample, as text."""
    loaded, _ = load_tokenizer(tokenizer_folder)
    return [(decode(loaded, ids[~mask]), decode(loaded, ids[mask])) for ids, mask in samples_of(folder)]


def save_ls960(folder: Path, rows) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def test_librispeech_asr_keeps_the_rows_wording(tmp_path, tokenizer):
    rows = ls960_rows(23)
    job = shipped("librispeech_asr", tmp_path, tokenizer, f"source.path={save_ls960(tmp_path / 'ls', rows)}")
    assert build_shard_set(job) is True
    loaded, vocabulary = load_tokenizer(tokenizer)
    wanted = [render(loaded, RECIPES["asr"].turn(row)) for row in rows]
    found = list(samples_of(job.out))
    assert [(ids.tolist(), mask.tolist()) for ids, mask in found] == [(each.ids, each.supervised) for each in wanted]
    assert ShardSet(job.out).vocabulary == vocabulary and vocabulary.units == UNITS
    assert vocabulary.to_units(found[3][0]) == rows[3]["discrete_unit"], "repeats are kept in questions"
    assert build_shard_set(job) is False, "up to date"


def test_librispeech_tts_asks_to_speak_by_row(tmp_path, tokenizer):
    rows = ls960_rows(23)
    path = write_jsonl(tmp_path / "ls" / "train.jsonl", rows)
    job = shipped("librispeech_tts", tmp_path, tokenizer, f"source.path={path.parent}")
    build_shard_set(job)
    loaded, _ = load_tokenizer(tokenizer)
    for i, ((ids, mask), row) in enumerate(zip(samples_of(job.out), rows, strict=True)):
        turn = RECIPES["tts"].turn(row | {"instruction": TTS_WORDINGS[i % 10]})
        assert (ids.tolist(), mask.tolist()) == (render(loaded, turn).ids, render(loaded, turn).supervised)
        assert not any(row["instruction"] in text for text in (turn.prompt, turn.answer))


@pytest.mark.parametrize("streaming", [False, True])
def test_magpie_sqa_takes_chunks_filters_and_never_decodes_audio(tmp_path, tokenizer, streaming, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # decoding would need it
    chunks = {chunk: magpie_rows(10, chunk) for chunk in range(10)}
    for chunk, rows in chunks.items():
        save_magpie(tmp_path / f"Magpie_rank0_chunk{chunk}_interleaves", rows)
    pattern = tmp_path / "Magpie_rank{rank}_chunk{chunk}_interleaves"
    job = shipped("magpie_sqa", tmp_path, tokenizer, f"source.path='{pattern}'", f"source.streaming={streaming}")
    build_shard_set(job)
    kept = [
        row | {"output_interleaf": row["output_7306_interleaf"]}
        for chunk in range(10)
        for row in chunks[chunk]
        if row["task_category"] not in ("Math", "Coding & Debugging", "Data analysis")
    ]
    loaded, _ = load_tokenizer(tokenizer)
    wanted = [render(loaded, RECIPES["sqa"].turn(row)).ids for row in kept]
    assert [ids.tolist() for ids, _ in samples_of(job.out)] == wanted
    about = read_manifest(job.out).about
    assert (about["examples"], about["left_out"], about["samples"]) == (100, 60, 40)
    assert about["parts"] == (20 if streaming else 1), "streamed, a part is a data file"


def test_magpie_llm_is_text_alone_and_trains_models_with_and_without_units(tmp_path, tokenizer):
    rows = [{"input": f"say {i}", "output": f"{i} <|5|>", "uuid": "x"} for i in range(12)]
    path = write_jsonl(tmp_path / "air" / "train.jsonl", rows)
    job = shipped("magpie_llm", tmp_path, tokenizer, f"source.path={path}", "source.rows=10")
    build_shard_set(job)
    shards = ShardSet(job.out)
    assert shards.samples == 10 and shards.vocabulary.units is None
    plain = save_units_tokenizer(tmp_path / "plain", None)
    assert shards.vocabulary == load_tokenizer(plain)[1]
    assert texts_of(job.out, plain)[0] == ("<|user|>say 0<|end|><|assistant|>", "0 <|5|><|end|>")


@pytest.mark.parametrize("name", ["librispeech_asr", "librispeech_tts", "magpie_sqa", "magpie_llm"])
def test_shipped_jobs_are_valid(name, monkeypatch, capsys):
    from slm.cli.app import main

    monkeypatch.chdir(ROOT)
    assert main(["validate", f"data_shards/jobs/{name}.yaml"]) == 0
    assert "a good data job configuration" in capsys.readouterr().out


def test_the_one_percent_rule_is_over_all_parts_and_drop_keeps_what_was_built(many, caplog):
    long = many.rows[7] | {"transcription": "cat " * 400}
    write_jsonl(many.folder / "rows" / "a.jsonl", [*many.rows[:34], long])
    job = many("set", "max_length=300")
    assert build_shard_set(job)
    assert read_manifest(job.out).about["dropped"] == 1, "1 of 100, though 1 of 13 in its part"
    rows = [*many.rows[:10], long, *many.rows[:10], long, *many.rows[:11], long, long]
    write_jsonl(many.folder / "rows" / "a.jsonl", rows)
    with pytest.raises(DataError, match="2 of 100 examples are longer than max_length = 300"):
        build_shard_set(job)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        build_shard_set(many("set", "max_length=300", "overlong=drop"))
    assert read_manifest(job.out).about["dropped"] == 4
    assert "keeping 2 of 8 parts" in caplog.text


def test_long_spoken_answers_are_split_between_words(tmp_path, tokenizer):
    rows = ls960_rows(6)
    path = write_jsonl(tmp_path / "ls.jsonl", rows)
    source = f"source={{kind: jsonl, path: {path}}}"
    whole = shipped("librispeech_tts", tmp_path / "whole", tokenizer, source)
    build_shard_set(whole)
    longest = ShardSet(whole.out).longest
    job = shipped("librispeech_tts", tmp_path, tokenizer, source, f"max_length={longest - 1}")
    build_shard_set(job)
    about = read_manifest(job.out).about
    assert about["split"] >= 1 and about["dropped"] == 0 and about["samples"] >= 6 + about["split"]
    assert about["longest"] < longest
    _, vocabulary = load_tokenizer(tokenizer)
    pieces, wholes = ([u for ids, _ in samples_of(each.out) for u in vocabulary.to_units(ids)] for each in (job, whole))
    assert pieces == wholes


def test_units_of_another_kind_are_refused_before_any_work(many):
    for change, named in [
        ("units.count=5000", "count: the job says 5000, the data 16"),
        ("units.rate_hz=50", "rate_hz"),
        ("units.extractor=xlsr2_1b_v2", "extractor"),
        (f"units.codebook={'a' * 64}", "codebook"),
        ("units.output=kept", "output"),
        ("units.input=removed", "input"),
    ]:
        job = many("set", change)
        with pytest.raises(DataError, match=named) as caught:
            build_shard_set(job)
        assert job.tokenizer in caught.value.where
    assert [each.name for each in many.folder.iterdir()] == ["rows"]


def test_a_plain_tokenizer_gets_the_declared_units(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "ls.jsonl", ls960_rows(3))
    plain = save_units_tokenizer(tmp_path / "plain", None)
    source = f"source={{kind: jsonl, path: {path}}}"
    with pytest.raises(DataError, match="names no codebook"):
        build_shard_set(shipped("librispeech_asr", tmp_path, plain, source))
    job = shipped("librispeech_asr", tmp_path, plain, source, f"units.codebook={UNITS.codebook}")
    build_shard_set(job)
    assert ShardSet(job.out).vocabulary == load_tokenizer(tokenizer)[1], "the vocabulary that model expand makes"
