from __future__ import annotations

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
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    extra = (
        {"document_lengths": [len(d) for d in documents]}
        if lm.config._attn_implementation == attention.DOCUMENTS
        else {}
    )
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


def test_a_document_sees_nothing_of_another(pico_base, documents):
    attention.register()
    lm = load_base(pico_base, attention=attention.DOCUMENTS)
    before = packed_logits(lm, documents)
    after = packed_logits(lm, [documents[0] + 1, *documents[1:]])
    assert torch.equal(before[7:], after[7:])
    assert not torch.allclose(before[:7], after[:7])
