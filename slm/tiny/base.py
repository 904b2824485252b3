"""The tiny world's base model: a Llama of a million or two parameters with random weights."""

from __future__ import annotations

import logging

from slm.artifact import building, write_manifest
from slm.config.base import to_make
from slm.config.tiny import TinyBaseJob
from slm.tokens.vocabulary import load_tokenizer, save_tokenizer, text_vocabulary, without_units

log = logging.getLogger(__name__)


def make_base(job: TinyBaseJob) -> bool:
    """Write the Hugging Face folder `job.out` (float32, text vocabulary).

    Returns:
        False when it was up to date already.

    Raises:
        DataError: no tokenizer artifact there.
    """
    inputs = to_make(job)
    if inputs is None:
        return False

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    full, vocabulary = load_tokenizer(job.tokenizer)
    tokenizer = without_units(full) if vocabulary.units else full
    text = text_vocabulary(tokenizer)
    config = LlamaConfig(
        vocab_size=text.size,
        hidden_size=job.hidden_size,
        num_hidden_layers=job.layers,
        num_attention_heads=job.heads,
        num_key_value_heads=job.kv_heads,
        intermediate_size=job.intermediate_size,
        max_position_embeddings=job.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": job.rope_theta},
        tie_word_embeddings=job.tie_embeddings,
        initializer_range=job.initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # transformers zeroes the row of a padding token while building, which fails on ZeRO's sharded weights.
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = LlamaForCausalLM(config).float()
    parameters = sum(weight.numel() for weight in model.parameters())
    transformers_logging.disable_progress_bar()
    with building(job.out) as folder:
        model.save_pretrained(folder)
        save_tokenizer(folder, tokenizer, text)
        about = {"parameters": parameters, "vocabulary": text.to_json(), "job": job.model_dump(mode="json")}
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs, about=about, format=job.format)
    log.info("%s: %.2f M parameters, %d tokens of text", job.out, parameters / 1e6, text.size)
    return True
