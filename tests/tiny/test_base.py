from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from slm.artifact import read_manifest, verify
from slm.config.tiny import TinyBaseJob
from slm.errors import DataError
from slm.tiny.base import make_base
from slm.tokens.vocabulary import load_tokenizer


def job(pico_tokenizer, out, **changes) -> TinyBaseJob:
    small = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 48}
    return TinyBaseJob(out=str(out), tokenizer=str(pico_tokenizer), **{**small, **changes})


def test_the_folder_is_an_ordinary_model_of_the_text_vocabulary(pico_tokenizer, tmp_path):
    assert make_base(job(pico_tokenizer, tmp_path / "base")) is True
    tokenizer, vocabulary = load_tokenizer(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert vocabulary.units is None
    assert vocabulary.text_sha256 == load_tokenizer(pico_tokenizer)[1].text_sha256
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 32)
    assert model.dtype == torch.float32
    assert model.config.pad_token_id is None
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    manifest = verify(tmp_path / "base", read_manifest(tmp_path / "base", "base"))
    assert manifest.about["parameters"] == sum(p.numel() for p in model.parameters())
    assert manifest.inputs == {"tokenizer": read_manifest(pico_tokenizer).fingerprint}


def test_weights_follow_the_seed_and_nothing_else(pico_tokenizer, tmp_path):
    torch.manual_seed(1)
    make_base(job(pico_tokenizer, tmp_path / "a"))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after  # the caller's generator is left alone
    make_base(job(pico_tokenizer, tmp_path / "b"))
    make_base(job(pico_tokenizer, tmp_path / "c", seed=1))
    a, b, c = (read_manifest(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_settings_reach_the_model(pico_tokenizer, tmp_path):
    make_base(job(pico_tokenizer, tmp_path / "base", tie_embeddings=True, initializer_range=0.1, rope_theta=500.0))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert model.config.rope_parameters["rope_theta"] == 500.0


def test_made_again_it_is_up_to_date(pico_tokenizer, tmp_path):
    make_base(job(pico_tokenizer, tmp_path / "base"))
    assert make_base(job(pico_tokenizer, tmp_path / "base")) is False
    assert make_base(job(pico_tokenizer, tmp_path / "base", seed=2)) is True


def test_without_a_tokenizer_artifact_nothing_is_made(tmp_path):
    with pytest.raises(DataError):
        make_base(job(tmp_path / "none", tmp_path / "base"))
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("change", [{"heads": 3}, {"heads": 4, "kv_heads": 3}, {"layers": 0}])
def test_shapes_that_do_not_fit_are_refused(pico_tokenizer, tmp_path, change):
    with pytest.raises(ValidationError):
        job(pico_tokenizer, tmp_path, **change)
