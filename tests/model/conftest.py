from __future__ import annotations

import pytest
import torch


@pytest.fixture
def text_base_of(tmp_path):
    """A function: tied -> a base whose vocabulary is the text tokenizer's alone."""
    from support import make_text_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from slm.artifact import write_manifest
    from slm.tokens.vocabulary import save_tokenizer, text_vocabulary

    def make(tied: bool):
        folder = tmp_path / f"text-{tied}"
        tokenizer = make_text_tokenizer()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            tie_word_embeddings=tied,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        save_tokenizer(folder, tokenizer, text_vocabulary(tokenizer))
        write_manifest(folder, "base", config={})
        return folder

    return make
