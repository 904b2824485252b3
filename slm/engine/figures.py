"""Honest figures of a step: what the ranks did, how long they waited, how much of the machine that used."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
import torch.distributed as dist

from slm.config.stage import StageConfig
from slm.engine.batch import MicroBatch
from slm.engine.distributed import Place, barrier
from slm.plan.devices import find_device
from slm.plan.flops import cost_of, pairs_in, recomputed_share
from slm.plan.shapes import stage_weights


class Figures:
    """Adds throughput, utilisation, waiting, memory and skew to the record of a step.

    MFU counts the operations that the mathematics asks for, HFU also those that activation
    checkpointing repeats; both are shares of the ranks' peak, and left out when that is not known:
    a card that is in no table and for which `track.peak_tflops` is not set.
    """

    def __init__(self, config: StageConfig, place: Place, *, bf16: bool) -> None:
        shape, weights = stage_weights(config.model)
        self.cost = cost_of(weights, shape, recomputed_share(config.model.activation_checkpointing, shape.layers))
        self.place = place
        self.peak = config.track.peak_tflops * 1e12 if config.track.peak_tflops else peak_flops(place, bf16=bf16)
        self.arrived = 0.0

    def arrive(self) -> None:
        """This rank has computed its gradients; what comes next waits for the others."""
        self.arrived = time.perf_counter()

    def of_step(
        self, batches: list[MicroBatch], labels: int, *, start: float, waited: float, took: float
    ) -> dict[str, Any]:
        """The figures of a step, over all ranks. Collective.

        Args:
            batches: this rank's.
            labels: supervised tokens of all ranks.
            start: when the step began here (`time.perf_counter`).
            waited, took: this rank's seconds of waiting for data, and of the whole step.
        """
        own = [
            float(sum(batch.tokens for batch in batches)),
            float(sum(pairs_in(batch.lengths) for batch in batches)),
            waited,
            self.arrived - start - waited,
            float(peak_memory(self.place)),
        ]
        everybody = torch.zeros(self.place.world_size, len(own), dtype=torch.float64, device=self.place.device)
        everybody[self.place.rank] = torch.tensor(own, dtype=torch.float64)
        dist.all_reduce(everybody)
        tokens, pairs, waits, computed, memory = everybody.T.cpu()
        record: dict[str, Any] = {
            "supervised_tokens_per_s": labels / took,
            "data_wait": float(waits.max()) / took,
            "peak_memory_gb": float(memory.max()) / 1e9,
            "rank_skew_s": float(computed.max() - computed.min()),
            "rank_skew_tokens": float(tokens.max() - tokens.min()),
        }
        done = self.cost.model(float(tokens.sum()), labels, float(pairs.sum()))
        record["tflops"] = done / took / 1e12
        if self.peak is not None:
            available = self.peak * self.place.world_size * took
            record["mfu"] = done / available
            record["hfu"] = self.cost.hardware(float(tokens.sum()), labels, float(pairs.sum())) / available
        return record


def peak_memory(place: Place) -> int:
    """Bytes at the highest point so far: the device's allocator, or this process's resident memory on a CPU."""
    if place.device.type == "cuda":
        return torch.cuda.max_memory_allocated(place.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(place: Place, *, bf16: bool) -> float | None:
    """Operations a second that a rank could do: the data sheet's on a GPU in bf16, measured on a CPU."""
    if place.device.type == "cuda":
        device = find_device(torch.cuda.get_device_name(place.device)) if bf16 else None
        return device.peak_tflops * 1e12 if device else None
    return measured_flops(torch.bfloat16 if bf16 else torch.float32)


def measured_flops(dtype: torch.dtype, size: int = 512, repeats: int = 5) -> float:
    """The best rate of a matrix product while all ranks compute one: what they share, they share here too."""
    a = torch.ones(size, size, dtype=dtype)  # no random numbers: a resumed run has its own state of them already
    barrier()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best
