from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

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


@pytest.mark.parametrize("backend", ["eager", "sdpa", attention.DOCUMENTS])
def test_packed_equals_separate_in_logits_and_gradients(pico_base, documents, backend):
    attention.register()
    plain, packed = load_base(pico_base, attention="sdpa"), load_base(pico_base, attention=backend)
    expected, found = separate_logits(plain, documents), packed_logits(packed, documents)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
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


def test_a_document_sees_nothing_of_another(pico_base, documents):
    attention.register()
    lm = load_base(pico_base, attention=attention.DOCUMENTS)
    before = packed_logits(lm, documents)
    after = packed_logits(lm, [documents[0] + 1, *documents[1:]])
    assert torch.equal(before[7:], after[7:])
    assert not torch.allclose(before[:7], after[:7])
