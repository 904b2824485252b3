"""The text path of Mllama is a Llama: proved on a random one against transformers' own Mllama."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from support import make_text_tokenizer

from slm.artifact import find_manifest
from slm.config.models import ExpandJob, ImportJob
from slm.errors import CheckpointError
from slm.model.load import load_base, load_model
from slm.model.mllama import import_text_model
from slm.model.vocabulary import expand
from slm.tokens.vocabulary import load_tokenizer


@pytest.fixture(scope="module")
def mllama(tmp_path_factory):
    """Five text layers, two of them cross-attention; eight rows more in than out; an image token beyond the head."""
    from tokenizers import AddedToken
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    folder = tmp_path_factory.mktemp("mllama")
    tokenizer = make_text_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_tokens([AddedToken("<|image|>", special=True)], special_tokens=True)
    text = {
        "vocab_size": rows,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 5,
        "cross_attention_layers": [1, 3],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "initializer_range": 0.2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 32,
        "vision_output_dim": 32,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
        "intermediate_layers_indices": [0],
    }
    torch.manual_seed(0)
    model = MllamaForConditionalGeneration(MllamaConfig(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    return folder, model


def test_the_imported_llama_has_the_same_logits(tmp_path, mllama):
    folder, model = mllama
    job = ImportJob(out=str(tmp_path / "text"), model=str(folder))
    assert import_text_model(job) is True and import_text_model(job) is False
    llama = load_base(tmp_path / "text").eval()
    assert llama.config.model_type == "llama" and llama.config.num_hidden_layers == 3
    ids = torch.arange(2, 102).reshape(2, 50)
    with torch.no_grad():
        assert torch.equal(llama(ids).logits, model(ids).logits)
    assert find_manifest(tmp_path / "text").about["layers"] == {"0": 0, "1": 2, "2": 4}


def test_the_image_token_is_left_out_and_units_take_its_id(tmp_path, mllama, pico_tokenizer):
    folder, model = mllama
    import_text_model(ImportJob(out=str(tmp_path / "text"), model=str(folder)))
    tokenizer, vocabulary = load_tokenizer(tmp_path / "text")
    assert "<|image|>" not in tokenizer.get_vocab() and len(tokenizer) == model.lm_head.weight.shape[0]
    job = ExpandJob(out=str(tmp_path / "base"), model=str(tmp_path / "text"), tokenizer=str(pico_tokenizer))
    expand(job)
    loaded = load_model(tmp_path / "base")
    assert loaded.vocabulary.first_unit == vocabulary.size
    ids = torch.arange(2, 52)[None]
    with torch.no_grad():
        grown = loaded.model(ids).logits[..., : vocabulary.size]
        torch.testing.assert_close(grown, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_is_no_mllama_is_said_so(tmp_path, pico_base):
    with pytest.raises(CheckpointError, match="not an Mllama: model_type is 'llama'"):
        import_text_model(ImportJob(out=str(tmp_path / "text"), model=str(pico_base)))


@pytest.mark.parametrize("fault", ["missing", "left over", "pickles"])
def test_a_damaged_mllama_leaves_nothing(tmp_path, mllama, fault):
    folder = tmp_path / "copy"
    shutil.copytree(mllama[0], folder)
    if fault == "pickles":
        for file in folder.glob("model*"):
            file.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"")
    else:
        values = json.loads((folder / "config.json").read_text())
        values["text_config"]["num_hidden_layers"] = 6 if fault == "missing" else 4
        (folder / "config.json").write_text(json.dumps(values))
    messages = {
        "missing": r"can't be loaded again: model\.layers",
        "left over": r"layers\.4\.self_attn.* is not of a text layer",
        "pickles": "only pickled weights",
    }
    with pytest.raises(CheckpointError, match=messages[fault]):
        import_text_model(ImportJob(out=str(tmp_path / "text"), model=str(folder)))
    assert not (tmp_path / "text").exists()
