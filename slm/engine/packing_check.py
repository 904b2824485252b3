"""The packing contract, checked before the first step: documents of a packed row do not see one another.

transformers separates documents only by their position resets, and only while no attention mask and no
cache is given; a backend that misses them trains on mixed documents without a word.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm.engine.distributed import Place
from slm.errors import MachineError
from slm.model.lora import causal_lm

LENGTHS = (7, 1, 13)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def require_separate_documents(engine: Any, place: Place) -> None:
    """Compare the losses of three documents packed in one row with their losses alone. Collective.

    Runs the engine's own forward pass, without gradients and dropout, so it holds for the backend,
    the ZeRO stage and the precision of this run.

    Raises:
        MachineError: they differ, or the model keeps a cache.
    """
    lm = causal_lm(engine.module.lm)
    backend = lm.config._attn_implementation
    if lm.config.use_cache:
        raise MachineError("the model keeps a cache while training", where="use_cache in its configuration")
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, lm.config.vocab_size, (length,), generator=generator) for length in LENGTHS]
    training = engine.training
    engine.eval()
    with torch.no_grad():
        packed = _losses(engine, documents, place.device)
        apart = torch.cat([_losses(engine, [document], place.device) for document in documents])
    engine.train(training)
    limit = TOLERANCE[next(iter(lm.parameters())).dtype]
    error = float(((packed - apart).abs() / apart.clamp(min=1.0)).max())
    if not error <= limit:
        raise MachineError(
            f"documents of a packed row see one another: their losses differ by {error:.1e} from what they are alone",
            where=f"attention backend {backend}",
            mend="install the versions of constraints.txt",
        )


def _losses(engine: Any, documents: list[Tensor], device: torch.device) -> Tensor:
    """Summed loss of each document, (len(documents),), every token but the first a label."""
    ids = torch.cat(documents)
    positions = torch.cat([torch.arange(len(document)) for document in documents])
    where = torch.nonzero(positions[1:]).flatten()
    lengths = [len(document) for document in documents]
    tensors = (ids[None], positions[None], where, ids[where + 1])
    input_ids, position_ids, where, labels = (tensor.to(device) for tensor in tensors)
    _, sums = engine(input_ids, position_ids, lengths, where, labels, [length - 1 for length in lengths])
    return sums
