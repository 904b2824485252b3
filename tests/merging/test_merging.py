from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError
from support import full_disk

from slm.artifact import write_manifest
from slm.config.models import DiscountJob, MergeJob
from slm.config.stage import LoraConfig
from slm.errors import CheckpointError, ConfigError, MachineError
from slm.merging.discount import discount
from slm.merging.merge import merge
from slm.model.load import load_base, load_model
from slm.model.lora import attach, trainable, write_adapter

RECIPES = Path(__file__).resolve().parents[2] / "ds_configs" / "merge"
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def steps(tmp_path_factory, pico_base):
    """Label -> step folder of three adapters that moved differently."""
    found = {"base": str(pico_base)}
    for seed, label in enumerate(("asr", "tts", "sqa")):
        folder = tmp_path_factory.mktemp(label)
        lm = attach(load_base(pico_base), LORA, vocabulary=True)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in trainable(lm):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        write_adapter(folder / "adapter", lm, {n: p.detach() for n, p in trainable(lm)}, str(pico_base))
        write_manifest(folder, "stage", config={"seed": seed})
        found[label] = str(folder)
    return found


def weights(ref):
    return {name: value.numpy().astype(np.float64) for name, value in load_model(ref).model.state_dict().items()}


def run(steps, out, recipe, seed=0):
    job = MergeJob(
        out=str(out), recipe=recipe if isinstance(recipe, str) else yaml.safe_dump(recipe), models=steps, seed=seed
    )
    assert merge(job) is True
    return job


def test_linear_is_the_weighted_mean(tmp_path, steps):
    job = run(steps, tmp_path / "linear", (RECIPES / "linear.yml").read_text())
    assert merge(job) is False
    parts = {label: weights(ref) for label, ref in steps.items()}
    shares = {"base": 0.02, "sqa": 0.90, "tts": 0.05, "asr": 0.03}
    for name, value in weights(tmp_path / "linear").items():
        expected = sum(share * parts[label][name] for label, share in shares.items())
        np.testing.assert_allclose(value, expected, atol=2e-6, err_msg=name)


def test_ties_equals_the_formula(tmp_path, steps):
    run(steps, tmp_path / "ties", (RECIPES / "ties.yml").read_text())
    parts = {label: weights(ref) for label, ref in steps.items()}
    for name, value in weights(tmp_path / "ties").items():
        if "embed" not in name and "q_proj" not in name:
            continue
        base = parts["base"][name]
        deltas = []
        for label, weight in (("sqa", 0.90), ("tts", 0.06), ("asr", 0.04)):
            delta = (parts[label][name] - base).astype(np.float32)
            kept = np.sort(np.abs(delta).ravel())[::-1][: int(0.9 * delta.size)]
            deltas.append((np.where(np.abs(delta) >= kept[-1], delta, 0) * weight, weight))
        sign = np.where(sum(d for d, _ in deltas) >= 0, 1, -1)
        total = sum(np.where(np.sign(d) == sign, d, 0) for d, _ in deltas)
        norm = sum(np.where(np.sign(d) == sign, w, 0) for d, w in deltas)
        expected = base + total / np.where(norm == 0, 1, norm)
        assert np.abs(value - expected).max() < 1e-4, name


def test_dare_is_reproducible_by_seed(tmp_path, steps):
    recipe = (RECIPES / "dare.yml").read_text()
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(steps, tmp_path / out, recipe, seed)
    a, b, c = (weights(tmp_path / out) for out in "abc")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert any(not np.array_equal(a[name], c[name]) for name in a)


def test_a_recipe_that_names_an_unknown_model(tmp_path, steps):
    with pytest.raises(ConfigError, match="model 'sqa' is not given"):
        run({"base": steps["base"]}, tmp_path / "x", "merge_method: linear\nmodels: [{model: sqa}]\n")
    assert list(tmp_path.iterdir()) == []


def test_mergekit_refusing_a_recipe_leaves_nothing(tmp_path, steps):
    with pytest.raises(ConfigError, match="mergekit refuses"):
        run(steps, tmp_path / "x", "merge_method: linear\nmodels: [{model: base, parameters: 3}]\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_discount_scales_the_lora_change_alone(tmp_path, steps, scale):
    discount(DiscountJob(out=str(tmp_path / "d"), model=steps["sqa"], scale=scale))
    base, full, found = weights(steps["base"]), weights(steps["sqa"]), weights(tmp_path / "d")
    for name, value in found.items():
        factor = 1.0 if "embed_tokens" in name or "lm_head" in name else scale
        np.testing.assert_allclose(value, base[name] + factor * (full[name] - base[name]), atol=1e-6, err_msg=name)


def test_discount_of_everything_at_zero_is_the_base(tmp_path, steps):
    job = DiscountJob(out=str(tmp_path / "d"), model=steps["sqa"], scale=0.0, scope="all")
    assert (discount(job), discount(job)) == (True, False)
    base, found = weights(steps["base"]), weights(tmp_path / "d")
    assert all(np.array_equal(base[name], found[name]) for name in base)


def test_only_an_adapter_can_be_discounted(tmp_path, steps):
    with pytest.raises(CheckpointError, match="only an adapter"):
        discount(DiscountJob(out=str(tmp_path / "d"), model=steps["base"], scale=0.5))


@pytest.mark.parametrize("recipe", ["models: [base]", "models: []", "slices: []", "models: {base: 1}"])
def test_recipes_of_another_form_are_refused(tmp_path, steps, recipe):
    with pytest.raises(ConfigError, match="expected `models:`"):
        run(steps, tmp_path / "x", f"merge_method: linear\n{recipe}\n")


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "full"), MachineError, "no space left"),
        (SafetensorError("Error while serializing: I/O error: File too large"), MachineError, "can't be written"),
        (SafetensorError("Error while deserializing header: header too large"), CheckpointError, "header too large"),
        (RuntimeError("Tensor lm_head.weight required but not present"), CheckpointError, "lm_head.weight required"),
    ],
)
def test_what_stops_mergekit_is_explained(tmp_path, steps, monkeypatch, raised, kind, message):
    def run_merge(*_, **__):
        raise raised

    monkeypatch.setattr("mergekit.merge.run_merge", run_merge)
    with pytest.raises(kind, match=message):
        run(steps, tmp_path / "x", "merge_method: linear\nmodels: [{model: base, parameters: {weight: 1}}]\n")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_a_checkpoint_error(tmp_path, steps):
    shutil.copytree(steps["base"], tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"x" * 40)
    recipe = "merge_method: linear\nmodels: [{model: base, parameters: {weight: 1}}]\n"
    with pytest.raises(CheckpointError, match="mergekit can't merge these models"):
        run({"base": str(tmp_path / "cut")}, tmp_path / "x", recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


def test_a_full_disk_while_discounting_is_a_machine_error(tmp_path, steps):
    with full_disk(), pytest.raises(MachineError, match="no space left"):
        discount(DiscountJob(out=str(tmp_path / "d"), model=steps["sqa"], scale=0.5))
    assert list(tmp_path.iterdir()) == []


def test_discounting_loads_neither_peft_nor_transformers():
    code = "import sys, slm.merging.discount; print(sorted({'peft', 'transformers', 'deepspeed'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
