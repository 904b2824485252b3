from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from slm.artifact import write_json, write_manifest
from slm.config.loader import from_mapping
from slm.config.models import ExpandJob
from slm.errors import CheckpointError, ConfigError, DataError
from slm.model.load import load_base, load_model
from slm.model.vocabulary import expand, spread_rows
from slm.speech.load import read_units
from slm.tokens.vocabulary import load_tokenizer, save_tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_growing_keeps_old_rows_and_spreads_new_ones(tmp_path, pico_tokenizer, text_base_of, tied):
    text = text_base_of(tied)
    job = ExpandJob(out=str(tmp_path / "base"), model=str(text), tokenizer=str(pico_tokenizer))
    assert expand(job) is True
    assert expand(job) is False
    before, after = load_base(text), load_model(tmp_path / "base")
    old = before.get_input_embeddings().weight
    rows = after.model.get_input_embeddings().weight
    assert rows.shape[0] % 8 == 0 and rows.shape[0] >= after.vocabulary.size
    assert torch.equal(rows[: len(old)], old)
    new = rows[after.vocabulary.first_unit :]
    distances = torch.cdist(new, new)[~torch.eye(len(new), dtype=bool)]
    assert distances.min() > 0.25 * torch.cdist(old, old).mean()
    assert torch.equal(after.model.get_output_embeddings().weight, rows) is tied
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(after.model(ids).logits[..., : len(old)], before(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_base_that_could_not_be_loaded_is_not_kept(tmp_path, pico_tokenizer, text_base_of, monkeypatch):
    monkeypatch.setattr("slm.model.vocabulary.NewRows.grow", lambda self, old, matrix: old)  # the old number of rows
    with pytest.raises(CheckpointError, match=r"can't be loaded again: lm_head\.weight is"):
        expand(ExpandJob(out=str(tmp_path / "base"), model=str(text_base_of(False)), tokenizer=str(pico_tokenizer)))
    assert list(tmp_path.glob("*base*")) == []


def qwen(folder, tied, spare=40):
    """A Qwen3 as they are published: no manifest, sharded, more rows than tokens."""
    from support import make_text_tokenizer
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_text_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer) + spare,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    model = Qwen3ForCausalLM(config).bfloat16()
    model.save_pretrained(folder, max_shard_size="30KB")
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.mark.parametrize("tied", [False, True])
def test_a_published_qwen_keeps_its_spare_rows_size_dtype_and_files(tmp_path, pico_tokenizer, tied):
    tokens = qwen(tmp_path / "qwen", tied)
    job = ExpandJob(out=str(tmp_path / "base"), model=str(tmp_path / "qwen"), tokenizer=str(pico_tokenizer), pad_to=64)
    assert expand(job) is True and expand(job) is False
    before = load_base(tmp_path / "qwen", dtype=torch.bfloat16).state_dict()
    after = load_base(tmp_path / "base", dtype=torch.bfloat16).state_dict()
    rows = after["model.embed_tokens.weight"]
    assert len(rows) == -(-(tokens + 40) // 64) * 64 or len(rows) == tokens + 40
    assert torch.equal(rows[:tokens], before["model.embed_tokens.weight"][:tokens])
    assert not torch.equal(rows[tokens : tokens + 40], before["model.embed_tokens.weight"][tokens:])
    files = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert len(files) == len(list((tmp_path / "qwen").glob("*.safetensors"))) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(torch.equal(after[name], before[name]) for name in before if "layers" in name)
    (tmp_path / "qwen" / files[0]).write_bytes((tmp_path / "qwen" / files[1]).read_bytes())
    with pytest.raises(CheckpointError):
        expand(job)  # other weights are another input


def test_never_more_than_a_file_of_the_model_is_held(tmp_path, pico_tokenizer, monkeypatch):
    import gc

    import slm.model.weights as weights

    tokens = qwen(tmp_path / "qwen", tied=False)
    held, original, before = [], weights.save_file, {id(t) for t in gc.get_objects()}

    def save(tensors, *rest, **named):
        """What lives beside the two tables while a file is written."""
        gc.collect()
        alive = [t for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in before]
        held.append((sum(t.nbytes for t in alive if len(t) < tokens), sum(t.nbytes for t in tensors.values())))
        return original(tensors, *rest, **named)

    monkeypatch.setattr(weights, "save_file", save)
    expand(ExpandJob(out=str(tmp_path / "base"), model=str(tmp_path / "qwen"), tokenizer=str(pico_tokenizer)))
    assert len(held) > 2 and all(alive < 1.05 * written for alive, written in held)


def test_the_units_of_a_speech_artifact_make_the_vocabulary_that_their_tokenizer_has(
    tmp_path, pico_tokenizer, text_base_of, units
):
    speech = tmp_path / "speech"
    speech.mkdir()
    write_json(speech / "speech.json", {"extractor": "mel_kmeans", "vocoder": None, "units": dataclasses.asdict(units)})
    write_manifest(speech, "speech", config={})
    base = str(text_base_of(False))
    expand(ExpandJob(out=str(tmp_path / "a"), model=base, speech=str(speech)))
    expand(ExpandJob(out=str(tmp_path / "b"), model=base, tokenizer=str(pico_tokenizer)))
    assert load_tokenizer(tmp_path / "a")[1] == load_tokenizer(tmp_path / "b")[1]
    assert load_tokenizer(tmp_path / "a")[1].units == units
    with pytest.raises(DataError, match="has units already"):
        expand(ExpandJob(out=str(tmp_path / "c"), model=str(tmp_path / "a"), speech=str(speech)))
    (speech / "speech.json").write_text("{}")
    with pytest.raises(DataError, match="not a description of speech units"):
        read_units(speech)
    for both in ({}, {"tokenizer": str(pico_tokenizer), "speech": str(speech)}):
        with pytest.raises(ConfigError, match="give either tokenizer"):
            from_mapping(ExpandJob, {"out": "o", "model": base, **both}, "job")


@pytest.mark.parametrize("tied", [False, True])
def test_rows_from_a_file(tmp_path, pico_tokenizer, text_base_of, tied):
    given = {"embed_tokens": torch.randn(16, 32)} | ({} if tied else {"lm_head": torch.randn(16, 32)})
    save_file(given, tmp_path / "rows.safetensors")
    job = ExpandJob(
        out=str(tmp_path / "base"),
        model=str(text_base_of(tied)),
        tokenizer=str(pico_tokenizer),
        rows=str(tmp_path / "rows.safetensors"),
    )
    expand(job)
    loaded = load_model(tmp_path / "base")
    units = slice(loaded.vocabulary.first_unit, loaded.vocabulary.first_unit + 16)
    assert torch.equal(loaded.model.get_input_embeddings().weight[units], given["embed_tokens"])
    assert torch.equal(loaded.model.get_output_embeddings().weight[units], given["embed_tokens" if tied else "lm_head"])
    save_file({name: rows + 1 for name, rows in given.items()}, tmp_path / "rows.safetensors")
    assert expand(job) is True, "other rows are another base"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embed_tokens": torch.ones(16, 32)}, "wanted are"),
        ({"embed_tokens": torch.ones(3, 32)} | {"lm_head": torch.ones(16, 32)}, "have shape"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, pico_tokenizer, text_base_of, given, message):
    save_file(given, tmp_path / "rows.safetensors")
    job = {
        "model": str(text_base_of(False)),
        "tokenizer": str(pico_tokenizer),
        "rows": str(tmp_path / "rows.safetensors"),
    }
    with pytest.raises(DataError, match=message):
        expand(ExpandJob(out=str(tmp_path / "base"), **job))
    assert not (tmp_path / "base").exists()


def test_new_rows_have_the_old_rows_statistics():
    old = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 3
    new = spread_rows(old, 4000, 1.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=0.5, rtol=0.1)
    torch.testing.assert_close(new.std(0), old.std(0), atol=0.3, rtol=0.1)


def test_a_tokenizer_of_another_text_is_refused(tmp_path, pico_tokenizer, text_base_of):
    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    import dataclasses

    other = dataclasses.replace(vocabulary, text_sha256="f" * 64)
    save_tokenizer(tmp_path / "tok", tokenizer, other)
    write_manifest(tmp_path / "tok", "tokenizer", config={"other": True})
    with pytest.raises(DataError, match=r"not an extension|vocabulary"):
        expand(ExpandJob(out=str(tmp_path / "base"), model=str(text_base_of(False)), tokenizer=str(tmp_path / "tok")))
    assert not (tmp_path / "base").exists()
