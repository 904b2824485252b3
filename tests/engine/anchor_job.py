"""What each rank of `test_anchor` runs: steps of a small model under every kind of ZeRO, anchored.

usage: anchor_job.py OUT. Rank 0 writes OUT: case -> gradient norm of each step, penalties, final weights.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

CASES = {
    f"{mode} stage{stage}{' offload' if offload else ''} x{accumulation}": (mode, stage, offload, accumulation)
    for mode, stage, offload, accumulation in [
        ("coupled", 3, False, 1),
        ("coupled", 3, True, 2),
        ("coupled", 2, False, 2),
        ("coupled", 2, True, 1),
        ("coupled", 1, False, 1),
        ("decoupled", 3, False, 1),
        ("decoupled", 3, True, 1),
        ("decoupled", 2, False, 2),
        ("decoupled", 1, False, 1),
    ]
}
STEPS, RATE, CLIP, ROWS = 4, 0.05, 0.55, 8
ANCHOR = {"weight": 0.8, "weights": {"vocabulary": 0.3, "vector": 0.0}}
GROUPS = {"vocabulary": "table.weight", "matrix": "inner.weight", "vector": "inner.bias"}


class Small(nn.Module):
    """Odd sizes, so that every way of cutting them needs padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, ids, labels):
        return nn.functional.cross_entropy(self.inner(self.table(ids).tanh()), labels, reduction="sum")


def make() -> Small:
    torch.manual_seed(0)
    return Small()


def data():
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, 7, (2, ROWS), generator=draw) for _ in range(STEPS)]


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    named = dict(model.named_parameters())
    groups = [{"name": group, "params": [named[name]]} for group, name in GROUPS.items()]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=0.0)


def steps(place, mode, stage, offload, accumulation):
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    from slm.config.stage import AnchorConfig
    from slm.engine.anchor import Anchor
    from slm.engine.distributed import all_sum

    zero = {"stage": stage, "stage3_param_persistence_threshold": 0, "overlap_comm": False}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": CLIP,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero | ({"offload_optimizer": {"device": "cpu"}} if offload else {}),
    }
    model = make()
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer_of(model), config=config)
    anchor = Anchor(engine, AnchorConfig(mode=mode, **ANCHOR))
    norms, penalties = [], []
    for ids, labels in data():
        penalties.append(all_sum([anchor.penalty()], place.device)[0])
        parts = torch.arange(ROWS).chunk(place.world_size * accumulation)
        for i, part in enumerate(parts[place.rank :: place.world_size]):
            if i:
                engine.step()
            loss = engine(ids[part], labels[part])
            engine.backward(loss * place.world_size / ROWS, scale_wrt_gas=False)
        anchor.add_gradients()
        engine.step()
        norms.append(float(engine.get_global_grad_norm()))
    weights = {name: safe_get_full_fp32_param(p).tolist() for name, p in engine.module.named_parameters()}
    return {"norms": norms, "penalties": penalties, "weights": weights}


def main() -> None:
    from slm.engine.distributed import find_place, prepare_environment, process_group

    prepare_environment()
    place = find_place()
    with process_group(place):
        found = {name: steps(place, *case) for name, case in CASES.items()}
    if place.is_main:
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main()
