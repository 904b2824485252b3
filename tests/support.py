"""What tests build on: a pico tokenizer and pico models, made on the spot."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SENTENCES = [
    "what is the capital of france",
    "paris",
    "repeat twice red dog",
    "two and three make five",
    "the cat says meow",
]


def make_text_tokenizer():
    """A byte-level BPE of about 300 entries with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_base(
    folder: Path, tokenizer_folder: Path, *, tied: bool = False, layers: int = 2, seed: int = 0, width: int = 32
) -> Path:
    """A random Llama with a row for every token, as a `base` artifact."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from slm.artifact import write_manifest
    from slm.tokens.vocabulary import load_tokenizer, save_tokenizer

    tokenizer, vocabulary = load_tokenizer(tokenizer_folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, tokenizer, vocabulary)
    write_manifest(folder, "base", config={"tied": tied, "layers": layers, "seed": seed})
    return folder


@contextmanager
def full_disk(left: int = 1024) -> Iterator[None]:
    """Writes past `left` bytes of any file of this process fail, as on a full disk.

    A block and no fixture: between a test's body and its fixtures' end the runner writes its own output.
    """
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
