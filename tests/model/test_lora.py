from __future__ import annotations

import re
import shutil
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import full_disk

from slm.artifact import read_manifest, write_manifest
from slm.config.stage import LoraConfig
from slm.errors import CheckpointError, MachineError
from slm.model.adapter import read_adapter, save_tensors
from slm.model.load import load_base, load_model, require_same_base
from slm.model.lora import attach, causal_lm, load_trainable, trainable, write_adapter
from slm.model.reference import resolve

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "v_proj"])


def trained(base, *, vocabulary=True, seed=0):
    """A model whose trainable parameters have all moved."""
    lm = attach(load_base(base), LORA, vocabulary=vocabulary)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in trainable(lm):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return lm.eval()


def tensors_of(lm):
    return {name: parameter.detach().clone() for name, parameter in trainable(lm)}


def gathered(parameters):
    return nullcontext()


@pytest.mark.parametrize("tied", [False, True])
def test_plain_peft_reloads_the_adapter_with_zero_difference(tmp_path, pico_base, pico_tied_base, tied):
    base = pico_tied_base if tied else pico_base
    lm = trained(base)
    write_adapter(tmp_path, lm, tensors_of(lm), str(base))
    reloaded = PeftModel.from_pretrained(load_base(base), str(tmp_path), autocast_adapter_dtype=False).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(lm(ids).logits, reloaded(ids).logits)
        folded = load_model(tmp_path, lora_scale=1.0).model
        torch.testing.assert_close(folded(ids).logits, lm(ids).logits, atol=1e-5, rtol=1e-5)
    if tied:
        head, embedding = causal_lm(folded).lm_head.weight, causal_lm(folded).model.embed_tokens.weight
        assert torch.equal(head, embedding)


def test_a_continued_adapter_is_trainable_and_equal(tmp_path, pico_base):
    lm = trained(pico_base)
    write_adapter(tmp_path, lm, tensors_of(lm), str(pico_base))
    following = attach(load_base(pico_base), LORA, vocabulary=True)
    load_trainable(following, tmp_path, LORA, gathered)
    assert {name for name, _ in trainable(following)} == {name for name, _ in trainable(lm)}
    for name, parameter in trainable(following):
        assert torch.equal(parameter, tensors_of(lm)[name])
        assert parameter.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 8}, "has rank 4, this stage asks for 8"),
        ({"alpha": 4.0}, "has alpha 8, this stage asks for 4"),
        ({"targets": ["q_proj"]}, "train different parameters"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(tmp_path, pico_base, change, message):
    lm = trained(pico_base)
    write_adapter(tmp_path, lm, tensors_of(lm), str(pico_base))
    other = LORA.model_copy(update=change)
    with pytest.raises(CheckpointError, match=message):
        load_trainable(attach(load_base(pico_base), other, vocabulary=True), tmp_path, other, gathered)


def test_targets_that_match_nothing_are_an_error(pico_base):
    with pytest.raises(CheckpointError, match="LoRA can't be attached"):
        attach(load_base(pico_base), LORA.model_copy(update={"targets": ["nothing"]}), vocabulary=True)


@pytest.mark.parametrize("fault", ["empty", "nan", "missing"])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, pico_base, fault):
    lm = trained(pico_base)
    tensors = tensors_of(lm)
    name = next(iter(tensors))
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(0) if fault == "empty" else torch.full_like(tensors[name], float("nan"))
    with pytest.raises(
        CheckpointError, match={"empty": "is empty", "nan": "non-finite", "missing": "differ from what trains"}[fault]
    ):
        write_adapter(tmp_path / "adapter", lm, tensors, str(pico_base))
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_a_frozen_model_is_an_error(pico_base):
    lm = load_base(pico_base).requires_grad_(False)
    with pytest.raises(CheckpointError, match="no parameter is trainable"):
        trainable(lm)


def test_each_vocabulary_matrix_is_written_once(tmp_path, pico_base):
    lm = trained(pico_base)
    write_adapter(tmp_path, lm, tensors_of(lm), str(pico_base))
    config, tensors = read_adapter(tmp_path)
    names = [name for name in tensors if "lora_" not in name]
    assert sorted(names) == ["base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"]
    assert config["modules_to_save"] == ["embed_tokens", "lm_head"]


def test_references(tmp_path, pico_base):
    assert resolve(pico_base).adapter is None
    with pytest.raises(CheckpointError, match="no model here"):
        resolve(tmp_path)


def test_lora_scale_zero_without_vocabulary_is_the_base(tmp_path, pico_base):
    lm = trained(pico_base, vocabulary=False)
    write_adapter(tmp_path, lm, tensors_of(lm), str(pico_base))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        base = load_model(pico_base).model(ids).logits
        assert torch.equal(load_model(tmp_path, lora_scale=0.0).model(ids).logits, base)
        assert not torch.allclose(load_model(tmp_path).model(ids).logits, base)


def test_missing_weights_are_an_error(tmp_path, pico_base):
    shutil.copytree(pico_base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights are missing: model\.layers.1\.mlp\.up_proj\.weight"):
        load_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("damage", "message"),
    [("shape", r"of another shape .*: model\.layers.1\.mlp\.up_proj\.weight$"), ("cut", "can't be loaded")],
)
def test_damaged_weights_are_an_error(tmp_path, pico_base, damage, message):
    shutil.copytree(pico_base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    else:
        tensors = load_file(file)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as failure:
        load_base(tmp_path / "base")
    assert re.search(message, failure.value.what)


@pytest.mark.parametrize("remembered", [True, False])
def test_an_adapter_of_another_base_is_not_continued(tmp_path, pico_base, pico_tied_base, remembered):
    lm = trained(pico_base)
    write_adapter(tmp_path / "step" / "adapter", lm, tensors_of(lm), str(pico_base))
    if remembered:
        write_manifest(tmp_path / "step", "stage", config={}, inputs={"base": read_manifest(pico_base).fingerprint})
    require_same_base(resolve(tmp_path / "step"), resolve(pico_base))
    with pytest.raises(CheckpointError, match="trained on another base"):
        require_same_base(resolve(tmp_path / "step"), resolve(pico_tied_base))
    shutil.copytree(pico_tied_base, tmp_path / "unknown")
    (tmp_path / "unknown" / "MANIFEST.json").unlink()
    require_same_base(resolve(tmp_path / "step"), resolve(tmp_path / "unknown"))


def test_an_adapter_whose_base_was_made_anew_is_not_continued(tmp_path, pico_base):
    lm = trained(pico_base)
    write_adapter(tmp_path / "step" / "adapter", lm, tensors_of(lm), str(pico_base))
    write_manifest(tmp_path / "step", "stage", config={}, inputs={"base": "0" * 64})
    with pytest.raises(CheckpointError, match="another base: 000000000000"):
        require_same_base(resolve(tmp_path / "step"), resolve(pico_base))


def test_a_full_disk_is_a_machine_error(tmp_path):
    with full_disk(), pytest.raises(MachineError, match="no space left") as failure:
        save_tensors({"a": torch.zeros(4096)}, tmp_path / "a.safetensors")
    assert failure.value.where == str(tmp_path / "a.safetensors") and "free some space" in failure.value.mend
