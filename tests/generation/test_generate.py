from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from slm.errors import CheckpointError, DataError
from slm.generation.cache import GrowingCache
from slm.generation.generate import Generated, Sampling, generate

VOCABULARY = 40


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def prompts():
    maker = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (n,), generator=maker).tolist() for n in (3, 9, 1, 5, 5, 14, 2, 7, 30, 4)]


def test_greedy_equals_transformers(model, prompts):
    ours = generate(model, prompts, stop={7}, max_new_tokens=20, batch_size=4)
    for prompt, result in zip(prompts, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=7, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert result.finished == (theirs[-1] == 7)
        assert result.ids == (theirs[:-1] if theirs[-1] == 7 else theirs)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9, seed=3)])
def test_a_batch_equals_one_by_one(model, prompts, sampling):
    """With its own stream, an item does not depend on its neighbours; the first item of a call has index 0."""
    stop = {3, 7}
    together = generate(model, prompts, stop=stop, max_new_tokens=24, batch_size=len(prompts), sampling=sampling)
    apart = generate(model, prompts, stop=stop, max_new_tokens=24, batch_size=1, sampling=sampling)
    assert together == apart
    assert len({len(result.ids) for result in together}) > 2


def test_limits_are_kept_per_item(model, prompts):
    limits = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    results = generate(model, prompts, stop=set(), max_new_tokens=limits, batch_size=6)
    assert [len(result.ids) for result in results] == limits
    assert not any(result.finished for result in results)
    whole = generate(model, prompts, stop=set(), max_new_tokens=9)
    assert [result.ids for result in results] == [w.ids[:n] for w, n in zip(whole, limits, strict=True)]


def test_nothing_and_empty_prompts(model):
    assert generate(model, [], stop={1}, max_new_tokens=3) == []
    with pytest.raises(DataError, match="prompt 1"):
        generate(model, [[1], []], stop={1}, max_new_tokens=3)


def test_sampling_follows_the_distribution(model):
    """The frequencies of 400 samples of one token are those of the softmax; top_p cuts the tail."""
    with torch.inference_mode():
        chances = torch.softmax(model(torch.tensor([[5, 6]])).logits[0, -1].double(), -1)
    results = generate(
        model, [[5, 6]] * 400, stop=set(), max_new_tokens=1, batch_size=400, sampling=Sampling(1.0, 1.0, seed=1)
    )
    counts = torch.bincount(torch.tensor([r.ids[0] for r in results]), minlength=VOCABULARY) / 400
    assert float((counts - chances).abs().max()) < 0.08
    best = generate(model, [[5, 6]] * 20, stop=set(), max_new_tokens=1, sampling=Sampling(1.0, 1e-6, seed=1))
    assert {r.ids[0] for r in best} == {int(chances.argmax())}


def test_the_cache_holds_what_transformers_caches(model):
    ids = torch.randint(1, VOCABULARY, (3, 90), generator=torch.Generator().manual_seed(2))
    ours, theirs = GrowingCache(), DynamicCache()
    with torch.inference_mode():
        for cache in (ours, theirs):
            for piece in ids.split([20, 1, 69], 1):
                model(piece, past_key_values=cache)
            cache.batch_select_indices(torch.tensor([2, 0]))
            model(ids[:2, :1], past_key_values=cache)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert a.get_seq_length() == 91
        torch.testing.assert_close(a.keys, b.keys)
        torch.testing.assert_close(a.values, b.values)


def test_an_ended_item_says_nothing_more(model, prompts):
    everything = set(range(VOCABULARY))
    assert generate(model, prompts, stop=everything, max_new_tokens=5) == [Generated([], True)] * len(prompts)


def test_rows_that_pad_the_vocabulary_are_never_said(model, prompts):
    whole = generate(model, prompts, stop=set(), max_new_tokens=12)
    narrow = generate(model, prompts, stop=set(), max_new_tokens=12, size=5)
    assert max(max(result.ids) for result in whole) >= 5 > max(max(result.ids) for result in narrow)


def test_a_sample_depends_on_its_number_and_not_on_its_place(model, prompts):
    sampling = Sampling(1.0, 0.9, seed=3)
    together = generate(model, prompts, stop=set(), max_new_tokens=8, sampling=sampling)
    rest = generate(model, prompts[4:], stop=set(), max_new_tokens=8, sampling=sampling, numbers=range(4, 10))
    assert rest == together[4:]


def test_a_diverged_model_is_told(prompts):
    broken = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                    num_attention_heads=2)
    ).eval()  # fmt: skip
    broken.lm_head.weight.data[3] = torch.nan
    with pytest.raises(CheckpointError, match="no finite numbers"):
        generate(broken, prompts, stop=set(), max_new_tokens=2)
