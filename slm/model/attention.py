"""Attention inside documents of a packed row.

transformers masks packed rows by their position resets, which builds a dense T x T mask on a CPU.
`slm_documents` runs SDPA a document at a time instead: no mask, cost in the documents' own lengths.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

DOCUMENTS = "slm_documents"


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_lengths: list[int],
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document.

    Args:
        query: (1, heads, T, head_dim), rotary positions applied.
        key, value: (1, key_value_heads, T, head_dim).
        document_lengths: tokens of each document in order; they sum to T.

    Returns:
        (1, T, heads, head_dim), and None for the weights.
    """
    grouped = query.shape[1] != key.shape[1]
    parts = [
        F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(
            query.split(document_lengths, 2),
            key.split(document_lengths, 2),
            value.split(document_lengths, 2),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `slm_documents` known to transformers."""
    AttentionInterface.register(DOCUMENTS, document_attention)


def document_arguments(implementation: str, lengths: list[int], device: torch.device) -> dict[str, Any]:
    """What the attention of packed rows is told besides the position resets.

    Flash attention would otherwise look for the resets itself, with a wait for the device in every layer.

    Args:
        implementation: transformers' name of the attention backend.
        lengths: tokens of each document in order.
    """
    if implementation == DOCUMENTS:
        return {"document_lengths": lengths}
    if not implementation.startswith("flash_attention"):
        return {}
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
    longest = max(lengths)
    return {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}


def training_backend(device_type: str) -> str:
    """The attention implementation to train packed rows with on this kind of device."""
    if device_type == "cpu":
        return DOCUMENTS
    return "flash_attention_2" if find_spec("flash_attn") else "sdpa"
