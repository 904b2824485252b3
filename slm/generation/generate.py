"""Batched generation: left padding, a key-value cache, rows that leave the batch when they are done.

Prompts are sorted by length, so little is padded; an item's result does not depend on which others
share its batch, in sampling neither: every item has a random stream of its own. A `Constraint` narrows
what may be said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slm.errors import CheckpointError, DataError
from slm.generation.cache import GrowingCache

if TYPE_CHECKING:
    from slm.generation.constraint import Constraint

# Below this share of unfinished rows the finished ones are taken out of the batch.
COMPACT_BELOW = 0.75


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: temperature 0 is greedy.

    Attributes:
        temperature: divides the logits.
        top_p: smallest set of most likely tokens with at least this probability.
        seed: with the item's number it determines the item's random stream.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """A continuation: its ids without the token that ended it, and whether one did."""

    ids: list[int]
    finished: bool


GREEDY = Sampling()


@torch.inference_mode()
def generate(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Collection[int],
    max_new_tokens: int | Sequence[int],
    batch_size: int = 64,
    sampling: Sampling = GREEDY,
    numbers: Sequence[int] | None = None,
    size: int | None = None,
    constraint: Constraint | None = None,
) -> list[Generated]:
    """Continue every prompt until a stop token or its limit.

    Args:
        model: a causal LM of transformers (or PEFT around one), in evaluation mode.
        prompts: token ids, none empty.
        stop: ids that end a continuation; they are not part of it.
        max_new_tokens: one limit, or one for each prompt.
        batch_size: prompts that are decoded together.
        sampling: greedy unless told otherwise.
        numbers: of the prompts, for their random streams; their places unless told otherwise.
        size: ids from here on (rows that pad a vocabulary) are never said.
        constraint: what may follow what.

    Returns:
        One result a prompt, in the order of the prompts.

    Raises:
        DataError: an empty prompt.
        CheckpointError: the model computes no finite numbers.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError("an empty prompt can't be continued", where=f"prompt {index}")
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), limits[i]))
    results: dict[int, Generated] = {}
    size = constraint.size if constraint is not None else size
    rules = _Rules(frozenset(stop), sampling, numbers or range(len(prompts)), size, constraint)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        results.update(_Batch(model, [(i, prompts[i], limits[i]) for i in chosen], rules).run())
    return [results[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class _Rules:
    """How tokens are chosen, and when an item ends; the same for all batches. See `generate`."""

    stop: frozenset[int]
    sampling: Sampling
    numbers: Sequence[int]
    size: int | None
    constraint: Constraint | None


class _Batch:
    """The state of one batch: which items its rows belong to, what they said, what is cached."""

    def __init__(self, model: torch.nn.Module, items: Sequence[tuple[int, Sequence[int], int]], rules: _Rules) -> None:
        self.model, self.rules = model, rules
        self.device = next(model.parameters()).device
        self.rows = [index for index, _, _ in items]
        self.limit = {index: limit for index, _, limit in items}
        self.said: dict[int, list[int]] = {index: [] for index in self.rows}
        self.ended: dict[int, bool] = {index: False for index, _, limit in items if limit < 1}
        self.random = {index: np.random.default_rng([rules.sampling.seed, rules.numbers[index]]) for index in self.rows}
        self.states = dict.fromkeys(self.rows, rules.constraint.start) if rules.constraint else {}
        self.cache = GrowingCache()
        width = max(len(prompt) for _, prompt, _ in items)
        self.ids = torch.zeros(len(items), width, dtype=torch.long)
        self.mask = torch.zeros(len(items), width, dtype=torch.long)
        for row, (_, prompt, _) in enumerate(items):
            self.ids[row, width - len(prompt) :] = torch.as_tensor(list(prompt), dtype=torch.long)
            self.mask[row, width - len(prompt) :] = 1
        self.ids, self.mask = self.ids.to(self.device), self.mask.to(self.device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def run(self) -> dict[int, Generated]:
        while len(self.ended) < len(self.said):
            logits = self._logits()
            if not bool(torch.isfinite(logits).all()):
                raise CheckpointError("the model computes no finite numbers", mend="its weights are damaged")
            chosen = self._choose(self._narrow(logits))
            for index, token in zip(self.rows, chosen, strict=True):
                self._take(index, token)
            self._next_step(chosen)
        return {index: Generated(ids, self.ended[index]) for index, ids in self.said.items()}

    def _logits(self) -> torch.Tensor:
        """Logits of the last position, [rows, vocabulary] in fp32."""
        # Without padding no mask is needed, and attention takes its fast path.
        arguments: dict[str, Any] = {"attention_mask": self.mask if not bool(self.mask.all()) else None}
        output = self.model(
            input_ids=self.ids,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **arguments,
        )
        return output.logits[:, -1, : self.rules.size].float()

    def _narrow(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits with -inf for what the constraint forbids."""
        if self.rules.constraint is None:
            return logits
        states = [self.states[index] for index in self.rows]
        left = [max(self.limit[index] - len(self.said[index]), 1) for index in self.rows]
        allowed = self.rules.constraint.allowed(states, left, logits.device)
        return logits.masked_fill(~allowed, -torch.inf)

    def _choose(self, logits: torch.Tensor) -> list[int]:
        """A token for each row; by temperature and top_p each row draws one number from its own stream."""
        sampling = self.rules.sampling
        if sampling.temperature <= 0:
            return logits.argmax(-1).tolist()
        chances, tokens = torch.softmax(logits / sampling.temperature, -1).sort(dim=-1, descending=True)
        totals = chances.double().cumsum(-1)
        last = totals.shape[1] - 1
        kept = torch.searchsorted(totals, totals.new_full((len(totals), 1), sampling.top_p)).clamp(max=last)
        drawn = torch.tensor([[self.random[index].random()] for index in self.rows], dtype=torch.float64)
        place = torch.searchsorted(totals, drawn.to(totals.device) * totals.gather(1, kept), right=True)
        return tokens.gather(1, place.minimum(kept))[:, 0].tolist()

    def _take(self, index: int, token: int) -> None:
        if index in self.ended:
            return
        if token in self.rules.stop:
            self.ended[index] = True
            return
        self.said[index].append(token)
        if self.rules.constraint is not None:
            self.states[index] = self.rules.constraint.after(self.states[index], token)
        if len(self.said[index]) >= self.limit[index]:
            self.ended[index] = False

    def _next_step(self, chosen: list[int]) -> None:
        alive = [row for row, index in enumerate(self.rows) if index not in self.ended]
        if not alive:
            return
        ids = torch.tensor(chosen, device=self.device)[:, None]
        positions = self.positions[:, -1:] + 1
        mask = torch.cat([self.mask, self.mask.new_ones(len(chosen), 1)], 1)
        if len(alive) < COMPACT_BELOW * len(self.rows):
            keep = torch.tensor(alive, device=self.device)
            ids, positions, mask = ids[keep], positions[keep], mask[keep]
            self.cache.batch_select_indices(keep)
            self.rows = [self.rows[row] for row in alive]
        self.ids, self.positions, self.mask = ids, positions, mask
