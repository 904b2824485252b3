from __future__ import annotations

import pytest
import torch

from slm.artifact import write_manifest
from slm.config.models import ExpandJob
from slm.errors import CheckpointError, DataError
from slm.model.load import load_base, load_model
from slm.model.vocabulary import expand, spread_rows
from slm.tokens.vocabulary import load_tokenizer, save_tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_growing_keeps_old_rows_and_spreads_new_ones(tmp_path, pico_tokenizer, text_base_of, tied):
    text = text_base_of(tied)
    job = ExpandJob(out=str(tmp_path / "base"), model=str(text), tokenizer=str(pico_tokenizer))
    assert expand(job) is True
    assert expand(job) is False
    before, after = load_base(text), load_model(tmp_path / "base")
    old = before.get_input_embeddings().weight
    rows = after.model.get_input_embeddings().weight
    assert rows.shape[0] % 8 == 0 and rows.shape[0] >= after.vocabulary.size
    assert torch.equal(rows[: len(old)], old)
    new = rows[after.vocabulary.first_unit :]
    distances = torch.cdist(new, new)[~torch.eye(len(new), dtype=bool)]
    assert distances.min() > 0.25 * torch.cdist(old, old).mean()
    assert torch.equal(after.model.get_output_embeddings().weight, rows) is tied
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(after.model(ids).logits[..., : len(old)], before(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_base_that_does_not_reload_is_not_kept(tmp_path, pico_tokenizer, text_base_of, monkeypatch):
    text = text_base_of(False)
    sealed = []

    def load(folder):
        if folder == text:
            return load_base(folder)
        sealed.append((folder / "MANIFEST.json").exists())
        return load_base(text)  # the old number of rows

    monkeypatch.setattr("slm.model.vocabulary.load_base", load)
    with pytest.raises(CheckpointError, match="reloads with"):
        expand(ExpandJob(out=str(tmp_path / "base"), model=str(text), tokenizer=str(pico_tokenizer)))
    assert sealed == [False]
    assert not (tmp_path / "base").exists()


def test_new_rows_have_the_old_rows_statistics():
    old = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 3
    new = spread_rows(old, 4000, 1.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=0.5, rtol=0.1)
    torch.testing.assert_close(new.std(0), old.std(0), atol=0.3, rtol=0.1)


def test_a_tokenizer_of_another_text_is_refused(tmp_path, pico_tokenizer, text_base_of):
    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    import dataclasses

    other = dataclasses.replace(vocabulary, text_sha256="f" * 64)
    save_tokenizer(tmp_path / "tok", tokenizer, other)
    write_manifest(tmp_path / "tok", "tokenizer", config={"other": True})
    with pytest.raises(DataError, match=r"not an extension|vocabulary"):
        expand(ExpandJob(out=str(tmp_path / "base"), model=str(text_base_of(False)), tokenizer=str(tmp_path / "tok")))
    assert not (tmp_path / "base").exists()
