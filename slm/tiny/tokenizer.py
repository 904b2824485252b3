"""The tiny world's tokenizer: byte-level BPE on its text, and a chat template."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from slm.config.tiny import TinyTokenizerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, USER, ASSISTANT = "<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
PARAGRAPH = "\n\n"
"""One token of its own, so that the parts of an answer have the same tokens alone and joined."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + ASSISTANT + "{{ message['content'] }}{{ eos_token }}"
    "{% else %}" + USER + "{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def train_tokenizer(lines: Iterable[str], config: TinyTokenizerConfig) -> PreTrainedTokenizerFast:
    """Learn merges from text; equal text gives an equal tokenizer.

    Returns:
        A tokenizer without units: pad, begin and end tokens set, ids without gaps.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.prefix_space)
    backend.decoder = decoders.ByteLevel()
    if config.prefix_space:
        # The space that was put before a text, or a paragraph, is taken away again.
        clean = [decoders.ByteLevel(), decoders.Strip(" ", 1, 0), decoders.Replace(PARAGRAPH + " ", PARAGRAPH)]
        backend.decoder = decoders.Sequence(clean)
    trainer = trainers.BpeTrainer(
        vocab_size=config.size - 1,
        special_tokens=[PAD, BOS, EOS, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    backend.add_tokens([AddedToken(PARAGRAPH, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
