"""Base layers that train whole beside LoRA, under ZeRO-3 on two ranks."""

from __future__ import annotations

import json

import torch
from peft import PeftModel
from safetensors.torch import load_file

from slm.model.load import load_base, load_model

ALSO = {"also_train": [r".*layers\.1\.self_attn\.(q|k|v)_proj"]}


def test_they_move_are_exported_and_continued(train, tmp_path, pico_base):
    first = train(tmp_path / "asr", model=ALSO, steps=3)
    assert first.code == 0, first.text
    tensors, base = load_file(first.out / "adapter" / "adapter_model.safetensors"), load_base(pico_base).state_dict()
    layers = [f"model.layers.1.self_attn.{p}_proj" for p in "qkv"]
    for layer in layers:
        assert not torch.equal(tensors[f"base_model.model.{layer}.weight"], base[f"{layer}.weight"])
    config = json.loads((first.out / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["embed_tokens", "lm_head", *sorted(layers)]
    peft = PeftModel.from_pretrained(load_base(pico_base), str(first.out / "adapter"), autocast_adapter_dtype=False)
    state = peft.state_dict()
    for layer in layers:
        kept = state[f"base_model.model.{layer}.modules_to_save.default.weight"]
        assert torch.equal(kept, tensors[f"base_model.model.{layer}.weight"])
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        folded = load_model(first.out).model(ids).logits
        torch.testing.assert_close(folded, peft.eval()(ids).logits, atol=1e-5, rtol=1e-5)
    second = train(tmp_path / "tts", stage="tts", previous=str(first.out), model=ALSO, steps=2)
    assert second.code == 0, second.text
    dropped = train(tmp_path / "other", stage="tts", previous=str(first.out), steps=2)
    assert dropped.code == 6 and "also_train" in dropped.text
