"""Floating-point operations of training, frozen weights counted as such.

A matrix of n weights costs 2n operations a token forward, 2n backward for the gradient of its input,
and 2n more for its own gradient only when it trains. So a LoRA step is about 4n a token, not the 6n of the
usual formula, which flatters it by 1.4. The head runs on supervised positions only, and is counted so;
attention is counted for the pairs inside documents that causal attention looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slm.config.stage import Every
from slm.plan.shapes import EMBEDDING, HEAD, NEW_EMBEDDING, NEW_HEAD, ModelShape, Weight


@dataclass(frozen=True)
class Cost:
    """Operations per unit of work.

    Attributes:
        token: of the body, forward and backward, for a token.
        label: of the head, for a supervised token.
        pair: of attention in all layers, for a pair (query, key).
        token_again, pair_again: of the forward pass that activation checkpointing repeats.
    """

    token: float
    label: float
    pair: float
    token_again: float
    pair_again: float

    def model(self, tokens: float, labels: float, pairs: float) -> float:
        """Operations that the mathematics asks for (MFU)."""
        return self.token * tokens + self.label * labels + self.pair * pairs

    def hardware(self, tokens: float, labels: float, pairs: float) -> float:
        """Operations that are carried out, recomputation included (HFU)."""
        return self.model(tokens, labels, pairs) + self.token_again * tokens + self.pair_again * pairs


def cost_of(weights: Sequence[Weight], shape: ModelShape, recomputed: float = 0.0) -> Cost:
    """The cost of a training step's parts.

    Args:
        weights: all parameters; matrices count, vectors are left out (under 0.1 %).
        recomputed: share of the layers whose activations are recomputed.
    """
    tables = (EMBEDDING, HEAD, NEW_EMBEDDING, NEW_HEAD)
    body = [w for w in weights if len(w.shape) == 2 and w.name not in tables]
    table = next(w for w in weights if w.name == EMBEDDING)
    head = next((w for w in weights if w.name == HEAD), table)
    new = [w for w in weights if w.name == (NEW_EMBEDDING if head is table else NEW_HEAD)]
    trained = [w.layer for w in weights if w.trains and w.layer is not None]
    # Gradients flow back as far as the first layer that trains; to the embeddings if these do.
    reaches = 0 if table.trains or new else min(trained, default=shape.layers)
    deep = [w for w in body if (w.layer or 0) >= reaches]
    forward = 2.0 * _sum(body)
    pair = 4.0 * shape.heads * shape.head_width
    return Cost(
        token=forward + 2.0 * _sum(deep) + 2.0 * _sum(w for w in body if w.trains),
        label=4.0 * head.count + 2.0 * (head.count if head.trains else _sum(new)),
        pair=pair * (shape.layers + 2 * (shape.layers - reaches)),
        token_again=recomputed * forward,
        pair_again=recomputed * pair * shape.layers,
    )


def _sum(weights: Iterable[Weight]) -> int:
    return sum(weight.count for weight in weights)


def pairs_in(lengths: Iterable[int]) -> int:
    """Pairs (query, key) that causal attention looks at in documents of these lengths."""
    return sum(length * (length + 1) // 2 for length in lengths)


def recomputed_share(wanted: Every | str, layers: int) -> float:
    """Share of the layers whose activations `model.activation_checkpointing` recomputes."""
    if isinstance(wanted, Every):
        return len(range(0, layers, wanted.every)) / layers
    return 1.0 if wanted == "all" else 0.0
