"""Attention inside documents of a packed row.

transformers masks packed rows by their position resets, which builds a dense T x T mask under SDPA.
`slm_documents` runs SDPA a document at a time instead, for CPUs; `slm_kernel` is the flash kernel that
torch itself brings for rows of documents, for GPUs without the flash_attn package. Both: no mask, cost
in the documents' own lengths.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from slm.device import sent

DOCUMENTS = "slm_documents"
KERNEL = "slm_kernel"
TRIAL_LENGTHS = (37, 1, 90)
"""Tokens of the documents that the kernel is tried on."""
TRIAL_WINDOW = 16
"""The sliding window there, for models that have one."""
TRIAL_TOLERANCE = 0.02
"""‖difference‖ / ‖expected‖ of its output and of each gradient: five times bf16's rounding, 2⁻⁸."""

log = logging.getLogger(__name__)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    document_lengths: list[int],
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document.

    Args:
        query: (1, heads, T, head_dim), rotary positions applied.
        key, value: (1, key_value_heads, T, head_dim).
        sliding_window: tokens that a token sees at most, itself among them; None is all before it.
        document_lengths: tokens of each document in order; they sum to T.

    Returns:
        (1, T, heads, head_dim), and None for the weights.
    """
    grouped = query.shape[1] != key.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = _window_mask(q.shape[2], sliding_window, q.device)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, dropout_p=dropout, is_causal=seen is None, scale=scaling, enable_gqa=grouped
        )

    parts = [
        attend(q, k, v)
        for q, k, v in zip(
            query.split(document_lengths, 2),
            key.split(document_lengths, 2),
            value.split(document_lengths, 2),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(length, length), True where a token sees another; None where no document is longer than the window."""
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


def kernel_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """`document_attention` by torch's flash kernel: half precision, on GPUs that have it, no dropout.

    Args:
        cu_seq_lens_q: int32, (documents + 1,): where each document begins, and T.
        max_length_q: tokens of the longest document.
    """
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    back = -1 if sliding_window is None else sliding_window - 1
    borders, longest = cu_seq_lens_q, max_length_q
    grouped = q.shape[1] != k.shape[1]
    found = varlen_attn(
        q, k, v, borders, borders, longest, longest, scale=scaling, window_size=(back, 0), enable_gqa=grouped
    )
    assert isinstance(found, Tensor)  # the second value, the log of the sum, was not asked for
    return found[None], None


def register() -> None:
    """Make `slm_documents` and `slm_kernel` known to transformers."""
    AttentionInterface.register(DOCUMENTS, document_attention)
    AttentionInterface.register(KERNEL, kernel_attention)


def document_arguments(implementation: str, lengths: list[int], device: torch.device) -> dict[str, Any]:
    """What the attention of packed rows is told besides the position resets.

    Flash attention would otherwise look for the resets itself, with a wait for the device in every layer.

    Args:
        implementation: transformers' name of the attention backend.
        lengths: tokens of each document in order.
    """
    if implementation == DOCUMENTS:
        return {"document_lengths": lengths}
    if implementation != KERNEL and not implementation.startswith("flash_attention"):
        return {}
    borders = sent(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)
    longest = max(lengths)
    return {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}


def training_backend(lm: Any, device: torch.device, dtype: torch.dtype) -> str:
    """The attention implementation to train packed rows with.

    Args:
        lm: transformers' model, which says what it supports.
        device: where it will be.
        dtype: of its weights.
    """
    if not lm._supports_sdpa:  # its attention is more than SDPA: capped scores, sinks
        flash = device.type != "cpu" and lm._supports_flash_attn and has_flash_attn(dtype)
        return "flash_attention_2" if flash else "eager"
    if device.type == "cpu":
        return DOCUMENTS
    if lm._supports_flash_attn and has_flash_attn(dtype):
        return "flash_attention_2"
    if getattr(lm.config, "attention_dropout", 0.0):
        log.info("attention: SDPA with a mask, slower than flash_attn: torch's kernel has no dropout")
    elif kernel_agrees(device, dtype, lm.config):
        return KERNEL
    return "sdpa"


def has_flash_attn(dtype: torch.dtype) -> bool:
    """Whether flash_attn is installed, and computes in this precision: it has kernels of 16 bits only."""
    return dtype in (torch.bfloat16, torch.float16) and find_spec("flash_attn") is not None


def kernel_agrees(device: torch.device, dtype: torch.dtype, config: Any) -> bool:
    """Whether torch's flash kernel runs on this device and gives `document_attention`'s results and gradients.

    Tried rather than looked up: builds of torch, kinds of GPU, precisions and head sizes differ in what they have.
    """
    heads = config.num_attention_heads
    of_keys = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = TRIAL_WINDOW if getattr(config, "sliding_window", None) else None
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, count, sum(TRIAL_LENGTHS), head_dim) for count in (heads, of_keys, of_keys)]
    values = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    found = []
    for implementation, attend in ((KERNEL, kernel_attention), (DOCUMENTS, document_attention)):
        query, key, value = (value.clone().requires_grad_() for value in values)
        told = document_arguments(implementation, list(TRIAL_LENGTHS), device)
        try:
            out, _ = attend(nn.Module(), query, key, value, None, scaling=head_dim**-0.5, sliding_window=window, **told)
            out.float().square().sum().backward()
        except (RuntimeError, ValueError, TypeError, ImportError) as error:  # TypeError: an older torch's signature
            why = (str(error).splitlines() or [repr(error)])[0]
            log.info("attention: SDPA with a mask, slower than flash_attn: torch's kernel fails here (%s)", why)
            return False
        found.append([out.detach(), query.grad, key.grad, value.grad])
    off = max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(*found, strict=True))
    if not off <= TRIAL_TOLERANCE:
        log.warning("attention: SDPA with a mask, slower than flash_attn: torch's kernel is off by %.1e here", off)
    return off <= TRIAL_TOLERANCE
