"""Embeddings and head split over the ranks, or trained in their new rows only: same mathematics, same export."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from slm.model.load import load_base, load_model

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
STRAIGHT = {"steps": 4, "every": 2, "seed": 1}


def mode(base, **values):
    return {"model": {"base": str(base), "lora": LORA, **values}}


def adapter(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


def difference(a, b):
    assert a.keys() == b.keys()
    one, two = (torch.cat([tensors[name].flatten().double() for name in sorted(tensors)]) for tensors in (a, b))
    return float((one - two).norm() / one.norm())


def losses(outcome):
    return [record["loss"] for record in outcome.metrics]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, pico_base, pico_tied_base):
    return pico_tied_base if request.param else pico_base


@pytest.fixture(scope="module")
def plain(train, base, tmp_path_factory):
    outcome = train(tmp_path_factory.mktemp("plain") / "asr", **mode(base), **STRAIGHT)
    assert outcome.code == 0, outcome.text
    return outcome


@pytest.mark.parametrize(("ranks", "zero"), [(1, "cpu.json"), (2, "cpu.json"), (2, "zero2.json")])
def test_split_tables_change_nothing(train, base, plain, tmp_path, ranks, zero):
    split = train(tmp_path / "asr", ranks=ranks, zero=zero, **mode(base, vocabulary_parallel=True), **STRAIGHT)
    assert split.code == 0, split.text
    np.testing.assert_allclose(losses(split), losses(plain), rtol=1e-5)
    norms = [[record["grad_norm"] for record in outcome.metrics] for outcome in (split, plain)]
    np.testing.assert_allclose(*norms, rtol=1e-4)
    assert norms[0][0] > 1.0, "the clipping was not at work"
    assert difference(adapter(plain.out), adapter(split.out)) < 1e-5
    assert (split.out / "checkpoints" / "step_000004" / f"vocabulary_rank{ranks - 1}.safetensors").is_file()


def test_new_rows_alone_move_and_the_adapter_is_whole(train, base, tmp_path):
    outcome = train(tmp_path / "asr", **mode(base, vocabulary="new_rows"), **STRAIGHT)
    assert outcome.code == 0, outcome.text
    loaded, start = load_model(outcome.out), load_base(base)
    first = loaded.vocabulary.first_unit
    for trained, before in (
        (loaded.model.get_input_embeddings(), start.get_input_embeddings()),
        (loaded.model.get_output_embeddings(), start.get_output_embeddings()),
    ):
        assert trained.weight.shape == before.weight.shape
        assert torch.equal(trained.weight[:first], before.weight[:first])
        assert not torch.equal(trained.weight[first:], before.weight[first:])
    standard = PeftModel.from_pretrained(start, str(outcome.out / "adapter"), autocast_adapter_dtype=False).eval()
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(standard(ids).logits, loaded.model(ids).logits, atol=1e-5, rtol=1e-5)
    further = train(tmp_path / "tts", stage="tts", **mode(base, previous=str(outcome.out)), **STRAIGHT)
    assert further.code == 0, further.text


def test_a_full_model_trains_with_split_tables(train, base, tmp_path):
    settings = {"stage": "llm", "mode": "full", **STRAIGHT}
    plain = train(tmp_path / "plain", model={"base": str(base)}, **settings)
    split = train(tmp_path / "split", model={"base": str(base), "vocabulary_parallel": "auto"}, **settings)
    assert plain.code == split.code == 0, plain.text + split.text
    np.testing.assert_allclose(losses(split), losses(plain), rtol=1e-5)
    found, expected = (load_model(outcome.out).model.state_dict() for outcome in (split, plain))
    assert difference(expected, found) < 1e-5


def test_in_bf16_split_tables_are_as_near_to_whole_ones_as_bf16_allows(train, base, tmp_path):
    """What bf16 allows: no farther from the whole tables of the same precision than these are from fp32."""
    tables = {"whole": mode(base), "split": mode(base, vocabulary_parallel=True)}
    runs = {
        (name, precision): train(tmp_path / f"{name}-{precision}", precision=precision, **settings, **STRAIGHT)
        for name, settings in tables.items()
        for precision in ("bf16", "fp32")
        if (name, precision) != ("split", "fp32")
    }
    assert all(run.code == 0 for run in runs.values()), [run.text for run in runs.values()]
    whole, split, exact = runs["whole", "bf16"], runs["split", "bf16"], runs["whole", "fp32"]
    rounding = np.abs(np.subtract(losses(whole), losses(exact))).max()
    assert np.abs(np.subtract(losses(split), losses(whole))).max() <= max(rounding, 2**-9 * losses(exact)[0])
    start = load_base(base).state_dict()
    names = [name for name in adapter(whole.out) if name.removeprefix("base_model.model.") in start]
    assert len(names) == 2
    moved = [
        {name: adapter(run.out)[name] - start[name.removeprefix("base_model.model.")] for name in names}
        for run in (whole, split, exact)
    ]
    assert difference(moved[0], moved[1]) <= difference(moved[2], moved[0])
    tensors = adapter(split.out)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert not torch.equal(tensors[names[0]], tensors[names[0]].bfloat16().float()), "the fp32 copy was rounded"
    loaded = load_model(split.out).model
    assert torch.equal(loaded.get_input_embeddings().weight, tensors["base_model.model.model.embed_tokens.weight"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_with_split_tables_is_bit_for_bit_the_straight_run(train, pico_base, tmp_path, precision):
    settings = {**mode(pico_base, vocabulary_parallel=True), "precision": precision, **STRAIGHT}
    straight = train(tmp_path / "straight", **settings)
    assert straight.code == 0, straight.text
    out = tmp_path / "asr"
    shutil.copytree(straight.out, out)
    (out / "MANIFEST.json").unlink()
    shutil.rmtree(out / "adapter")
    shutil.rmtree(out / "checkpoints" / "step_000004")
    refused = train(out, **(settings | mode(pico_base)))
    assert refused.code == 6 and "set model.vocabulary_parallel=true to continue it" in refused.text, refused.text
    resumed = train(out, **settings)
    assert resumed.code == 0 and "step 2" in resumed.text, resumed.text
    for name, value in adapter(straight.out).items():
        assert torch.equal(value, adapter(out)[name]), name


def test_split_tables_are_pulled_to_their_start_like_whole_ones(train, pico_base, tmp_path):
    settings = {**STRAIGHT, "anchor": {"weight": 3.0, "mode": "decoupled"}}
    whole = train(tmp_path / "whole", **mode(pico_base), **settings)
    split = train(tmp_path / "split", **mode(pico_base, vocabulary_parallel=True), **settings)
    assert (whole.code, split.code) == (0, 0), whole.text + split.text
    np.testing.assert_allclose(losses(split), losses(whole), rtol=1e-5)
    assert split.metrics[-1]["anchor_penalty"] == pytest.approx(whole.metrics[-1]["anchor_penalty"], rel=1e-4)
    assert difference(adapter(whole.out), adapter(split.out)) < 1e-5
