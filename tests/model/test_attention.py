from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig

from slm.model import attention
from slm.model.load import load_base


@pytest.fixture(scope="module")
def documents():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, 250, (length,), generator=generator) for length in (7, 1, 13)]


def separate_logits(lm, documents):
    return torch.cat([lm(ids[None], use_cache=False).logits[0] for ids in documents])


def packed_logits(lm, documents):
    ids = torch.cat(documents)[None]
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None].to(ids.device)
    extra = attention.document_arguments(lm.config._attn_implementation, [len(d) for d in documents], ids.device)
    return lm(ids, position_ids=positions, attention_mask=None, use_cache=False, **extra).logits[0]


def reference_varlen(q, k, v, borders_q, borders_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
    """What `torch.nn.attention.varlen` promises, by explicit softmax: shapes (T, heads, head_dim)."""
    assert torch.equal(borders_q, borders_k) and longest_q == longest_k == int(borders_q.diff().max())
    assert enable_gqa or q.shape[1] == k.shape[1]
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    row = torch.arange(len(q))
    document = torch.bucketize(row, borders_q[1:], right=True)
    back = row[:, None] - row[None]
    seen = (document[:, None] == document[None]) & (back >= -window_size[1])
    if window_size[0] >= 0:
        seen &= back <= window_size[0]
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("backend", ["eager", "sdpa", attention.DOCUMENTS, attention.KERNEL])
def test_packed_equals_separate_in_logits_and_gradients(pico_base, documents, backend, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen)
    attention.register()
    plain, packed = load_base(pico_base, attention="sdpa"), load_base(pico_base, attention=backend)
    expected, found = separate_logits(plain, documents), packed_logits(packed, documents)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), packed.named_parameters(), strict=True):
        assert (b.grad - a.grad).norm() <= 1e-5 * a.grad.norm(), name


def test_packed_equals_separate_on_flex_attention_forward(pico_base, documents):
    with torch.no_grad():
        expected = separate_logits(load_base(pico_base, attention="sdpa"), documents)
        found = packed_logits(load_base(pico_base, attention="flex_attention"), documents)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(find_spec("flash_attn") is None or not torch.cuda.is_available(), reason="no flash_attn, no GPU")
def test_packed_equals_separate_on_flash_attention(pico_base, documents):
    bf16 = torch.bfloat16
    plain = load_base(pico_base, attention="sdpa", dtype=bf16).cuda()
    packed = load_base(pico_base, attention="flash_attention_2", dtype=bf16).cuda()
    on_gpu = [document.cuda() for document in documents]
    torch.testing.assert_close(packed_logits(packed, on_gpu), separate_logits(plain, on_gpu), atol=0.1, rtol=0.05)


def test_flash_attention_is_told_where_documents_begin():
    told = attention.document_arguments("flash_attention_2", [7, 1, 13], torch.device("cpu"))
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == [0, 7, 8, 21]
    assert told["cu_seq_lens_q"].dtype == torch.int32 and told["max_length_q"] == told["max_length_k"] == 13
    assert attention.document_arguments("sdpa", [7], torch.device("cpu")) == {}


@pytest.mark.parametrize("backend", [attention.DOCUMENTS, attention.KERNEL])
def test_a_window_is_kept(documents, backend, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen)
    attention.register()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 250}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=4)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    expected = separate_logits(lm, documents)
    lm.set_attn_implementation(backend)
    torch.testing.assert_close(packed_logits(lm, documents), expected, atol=2e-6, rtol=1e-5)
    config.sliding_window = None
    assert not torch.allclose(packed_logits(AutoModelForCausalLM.from_config(config), documents), expected, atol=1e-3)


def wrong_varlen(*args, window_size, **more):
    return reference_varlen(*args, window_size=(1, 0), **more)


def older_varlen(q, k, v, borders_q, borders_k, longest_q, longest_k, is_causal=False, return_aux=None):
    raise AssertionError("its arguments do not fit")


KERNELS = [(reference_varlen, True), (wrong_varlen, False), (older_varlen, False), (None, False)]


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("kernel, wanted", KERNELS)
def test_torchs_kernel_is_tried_before_it_is_used(pico_base, kernel, wanted, window, monkeypatch):
    if kernel is not None:  # without a stand-in it is the real one, which a CPU does not have
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    before = torch.random.get_rng_state()
    config = load_base(pico_base).config
    config.sliding_window = window
    assert attention.kernel_agrees(torch.device("cpu"), torch.float32, config) is wanted
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_backend_follows_device_packages_and_model(pico_base, monkeypatch):
    lm, cpu, gpu, bf16 = load_base(pico_base), torch.device("cpu"), torch.device("cuda"), torch.bfloat16
    assert attention.training_backend(lm, cpu, torch.float32) == attention.DOCUMENTS
    installed: set[str] = set()
    monkeypatch.setattr(attention, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(attention, "kernel_agrees", lambda *_: True)
    assert attention.training_backend(lm, gpu, bf16) == attention.KERNEL
    lm.config.attention_dropout = 0.1  # the kernel has none
    assert attention.training_backend(lm, gpu, bf16) == "sdpa"
    lm.config.attention_dropout = 0.0
    monkeypatch.setattr(attention, "kernel_agrees", lambda *_: False)
    assert attention.training_backend(lm, gpu, bf16) == "sdpa"
    installed.add("flash_attn")
    assert attention.training_backend(lm, gpu, bf16) == "flash_attention_2"
    assert attention.training_backend(lm, gpu, torch.float32) == "sdpa"  # flash_attn has kernels of 16 bits only
    lm._supports_flash_attn = False
    assert attention.training_backend(lm, gpu, bf16) == "sdpa"
    lm._supports_sdpa = False
    assert {attention.training_backend(lm, device, bf16) for device in (cpu, gpu)} == {"eager"}


def test_capped_scores_stay_capped(documents):
    """Gemma 2's attention is more than SDPA: it trains by its own code."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 250, "head_dim": 4}
    config = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, attn_logit_softcapping=0.5)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert attention.training_backend(lm, torch.device("cpu"), torch.float32) == "eager"
    torch.testing.assert_close(packed_logits(lm, documents), separate_logits(lm, documents), atol=2e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_torchs_kernel_agrees_on_a_gpu(pico_base):
    assert attention.kernel_agrees(torch.device("cuda"), torch.bfloat16, load_base(pico_base).config)


def test_a_document_sees_nothing_of_another(pico_base, documents):
    attention.register()
    lm = load_base(pico_base, attention=attention.DOCUMENTS)
    before = packed_logits(lm, documents)
    after = packed_logits(lm, [documents[0] + 1, *documents[1:]])
    assert torch.equal(before[7:], after[7:])
    assert not torch.allclose(before[:7], after[:7])
