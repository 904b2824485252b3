from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from slm.config.stage import LoraConfig
from slm.errors import CheckpointError
from slm.model.load import load_base
from slm.model.lora import attach, causal_lm, trainable
from slm.model.new_rows import split_vocabulary, whole_matrices
from slm.model.supervised import SupervisedLM

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "v_proj"])


def gathered(parameters):
    return nullcontext()


def gradients(lm):
    ids = torch.arange(280, 312)[None]
    where = torch.arange(3, 31)
    loss, _ = SupervisedLM(lm, 8)(ids, torch.arange(32)[None], [32], where, ids[0, where + 1], [28])
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in trainable(lm)}


@pytest.mark.parametrize("tied", [False, True])
def test_loss_logits_and_gradients_are_those_of_the_whole_matrix(pico_base, pico_tied_base, tied):
    base, first = pico_tied_base if tied else pico_base, 300
    torch.manual_seed(0)
    whole = attach(load_base(base, attention="sdpa"), LORA, vocabulary=True)
    torch.manual_seed(0)
    split = attach(load_base(base, attention="sdpa"), LORA, vocabulary=True)
    split_vocabulary(split, first, gathered)
    ids = torch.arange(290, 312)[None]
    with torch.no_grad():
        torch.testing.assert_close(causal_lm(split)(ids).logits, causal_lm(whole)(ids).logits, atol=1e-6, rtol=1e-6)
    (loss, expected), (split_loss, found) = gradients(whole), gradients(split)
    torch.testing.assert_close(split_loss, loss)
    assert len(found) == len(expected)
    for name, grad in found.items():
        if name.endswith(".new"):
            torch.testing.assert_close(grad, expected[name.removesuffix("new") + "weight"][first:])
        else:
            torch.testing.assert_close(grad, expected[name])


def test_values_are_completed_to_whole_matrices(pico_base):
    lm = attach(load_base(pico_base), LORA, vocabulary=True)
    before = lm.get_input_embeddings().weight.detach().clone()
    split_vocabulary(lm, 300, gathered)
    values = {name: parameter.detach() + 1 for name, parameter in trainable(lm)}
    found = whole_matrices(lm, values, gathered, keep=True)
    embedding = found["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(embedding[:300], before[:300]) and torch.equal(embedding[300:], before[300:] + 1)
    assert not [name for name in found if name.endswith(".new")]


def test_a_base_without_new_rows_is_refused(pico_base):
    lm = attach(load_base(pico_base), LORA, vocabulary=True)
    with pytest.raises(CheckpointError, match="no rows from 4000 on"):
        split_vocabulary(lm, 4000, gathered)
