"""What leaves the house: a plain PEFT adapter, a merged model; checked by the libraries that will read them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from slm.artifact import verify, write_manifest
from slm.config.models import ExportJob
from slm.config.stage import LoraConfig
from slm.errors import CheckpointError, ConfigError
from slm.merging.export import export
from slm.model.load import load_base
from slm.model.lora import attach, trainable, whole_modules, write_adapter
from slm.model.vocabulary import EMBEDDING

ALSO = [r"model\.layers\.1\.self_attn\.(q|k|v)_proj", r"model\.norm"]
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=r".*\.self_attn\.(q|v)_proj")
IDS = torch.arange(5, 35)[None]
FRESH = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2]).eval()
with torch.no_grad():
    torch.save(model(torch.arange(5, 35)[None]).logits, sys.argv[3])
"""


@pytest.fixture(params=["untied", "tied"])
def step(request, tmp_path, pico_base, pico_tied_base):
    """A step whose adapter has LoRA on one layer, whole matrices on the other, and the vocabulary."""
    base = pico_tied_base if request.param == "tied" else pico_base
    lm = load_base(base)
    lm = attach(lm, LORA, vocabulary=True, whole=whole_modules(lm, ALSO)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in trainable(lm):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    tensors = {name: parameter.detach().clone() for name, parameter in trainable(lm)}
    write_adapter(tmp_path / "step" / "adapter", lm, tensors, str(base))
    write_manifest(tmp_path / "step", "stage", config={})
    with torch.no_grad():
        return tmp_path / "step", base, lm(IDS).logits


def test_modules_that_train_whole_have_no_adapter(pico_base):
    lm = load_base(pico_base)
    lm = attach(lm, LORA, vocabulary=False, whole=whole_modules(lm, ALSO))
    names = [name.removeprefix("base_model.model.model.") for name, _ in trainable(lm)]
    assert names == [
        *(f"layers.0.self_attn.{p}_proj.lora_{x}.default.weight" for p in "qv" for x in "AB"),
        *(f"layers.1.self_attn.{p}_proj.weight" for p in "qkv"),
        "norm.weight",
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nothing", "matches no module"), ("(", "not a regular"), (".*embed_tokens", "matches model")],
)
def test_expressions_that_make_no_sense(pico_base, pattern, message):
    with pytest.raises(ConfigError, match=message):
        whole_modules(load_base(pico_base), [pattern])


def test_plain_peft_in_a_fresh_process_gives_the_same_logits(tmp_path, step):
    folder, base, logits = step
    job = ExportJob(out=str(tmp_path / "out"), model=str(folder))
    assert export(job) is True and export(job) is False
    verify(tmp_path / "out")
    code = [sys.executable, "-c", FRESH, str(base), str(tmp_path / "out"), str(tmp_path / "logits.pt")]
    subprocess.run(code, check=True, capture_output=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)


def test_the_base_can_be_named_for_publishing(tmp_path, step):
    folder, _, _ = step
    export(ExportJob(out=str(tmp_path / "out"), model=str(folder), base_name="somebody/base"))
    assert (
        json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/base"
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_merged_equals_what_peft_merges(tmp_path, step, dtype):
    folder, base, logits = step
    export(ExportJob(out=str(tmp_path / "out"), model=str(folder), form="merged", dtype=dtype))
    torch_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
    merged = load_base(tmp_path / "out", dtype=torch_dtype)
    peft = PeftModel.from_pretrained(load_base(base), str(folder / "adapter"), autocast_adapter_dtype=False)
    for (name, ours), (_, theirs) in zip(
        merged.named_parameters(), peft.merge_and_unload().named_parameters(), strict=True
    ):
        tolerance = 1e-6 if dtype == "fp32" else 2**-8
        torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=1e-6, msg=name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    if dtype == "fp32":
        torch.testing.assert_close(merged(IDS).logits, logits, rtol=1e-5, atol=2e-5)


def test_a_model_without_an_adapter(tmp_path, pico_base):
    with pytest.raises(CheckpointError, match="no adapter"):
        export(ExportJob(out=str(tmp_path / "out"), model=str(pico_base)))
    export(ExportJob(out=str(tmp_path / "out"), model=str(pico_base), form="merged", dtype="bf16"))
    assert load_file(tmp_path / "out" / "model.safetensors")[EMBEDDING].dtype == torch.bfloat16


@pytest.mark.parametrize("fault", ["empty", "nan", "partner", "shape", "unlisted"])
def test_what_could_not_be_loaded_is_not_exported(tmp_path, step, fault):
    folder, _, _ = step
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "lora_A" in name)
    if fault == "partner":
        del tensors[name.replace("lora_A", "lora_B")]
    elif fault == "unlisted":
        tensors["base_model.model.model.layers.0.mlp.up_proj.weight"] = torch.zeros(64, 32)
    else:
        broken = {"empty": torch.zeros(0), "nan": torch.full_like(tensors[name], torch.nan), "shape": torch.ones(3, 32)}
        tensors[name] = broken[fault]
    save_file(tensors, file)
    for form in ("adapter", "merged"):
        with pytest.raises(CheckpointError):
            export(ExportJob(out=str(tmp_path / "out"), model=str(folder), form=form))
        assert not (tmp_path / "out").exists()
