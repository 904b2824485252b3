"""Run by ranks: the engine's gradients of 64 documents, for three packings and one or two micro-batches.

probe.py STAGE.yaml DOCUMENTS.npz OUT.pt
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import torch

from slm.config.loader import load_config
from slm.config.stage import StageConfig
from slm.data.loader import Row
from slm.data.packing import pack
from slm.engine.batch import to_micro_batch
from slm.engine.build import build_engine
from slm.engine.distributed import find_place, prepare_environment, process_group
from slm.engine.loop import _forward_backward, loss_weights
from slm.engine.pulse import Pulse
from slm.model.lora import trainable

SOURCES = ["a", "b"]


def bins_of(lengths: np.ndarray, packing: int) -> list[np.ndarray]:
    """32 documents in four rows: dealt out, packed tight, or three short rows and a long one."""
    order = np.random.default_rng(packing).permutation(32)
    if packing == 0:
        return [order[i::4] for i in range(4)]
    if packing == 1:
        packed = pack(lengths[order], int(lengths.sum() // 3))
        assert packed.rows == 4
        return [order[packed.items[a:b]] for a, b in zip(packed.starts, packed.starts[1:], strict=False)]
    return [order[:1], order[1:2], order[2:4], order[4:]]


def rows_of(file: str, packing: int) -> list[Row]:
    """Eight rows, four of each source, the sources taking turns."""
    saved = np.load(file)
    rows = []
    for number, source in enumerate(SOURCES):
        names = range(32 * number, 32 * number + 32)
        ids, masks = [saved[f"ids{i}"] for i in names], [saved[f"mask{i}"] for i in names]
        for items in bins_of(np.array([len(document) for document in ids]), packing):
            whole, mask = (np.concatenate([parts[i] for i in items]) for parts in (ids, masks))
            rows.append(Row(source, whole, mask, [len(ids[i]) for i in items]))
    return [rows[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]


def main() -> None:
    """One rank."""
    from deepspeed.utils import safe_get_full_grad

    stage, documents, out = sys.argv[1:]
    prepare_environment()
    place = find_place()
    config = load_config(StageConfig, stage)
    weights = loss_weights(config, SOURCES)
    found = {}
    with process_group(place):
        engine, _ = build_engine(config, place)
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.0
        for packing in range(3):
            rows = rows_of(documents, packing)
            batches = [to_micro_batch([row]) for row in rows]
            total = sum(weights[batch.sources[0]] * batch.rows[0] for batch in batches)
            own = rows[place.rank :: place.world_size]
            for accumulation in (1, 2):
                size = len(own) // accumulation
                engine._config.gradient_accumulation_steps, engine.micro_steps = accumulation, 0
                batches = [to_micro_batch(own[i : i + size]) for i in range(0, len(own), size)]
                figures = SimpleNamespace(arrive=lambda: None)
                facts = {"engine": engine, "place": place, "sources": SOURCES, "figures": figures}
                run = SimpleNamespace(**facts, anchor=None, pulse=Pulse())
                sums, _ = _forward_backward(run, batches, {name: weight / total for name, weight in weights.items()})
                grads = {name: safe_get_full_grad(p).clone() for name, p in trainable(engine.module.lm)}
                found[packing, accumulation] = sums, grads
                engine.step()
    if place.is_main:
        torch.save(found, out)


if __name__ == "__main__":
    main()
