"""Rows of the vocabulary tables are read back at any number of ranks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from slm.artifact import read_json, write_json
from slm.config.stage import OptimConfig
from slm.engine.distributed import Place
from slm.engine.table_files import INDEX, load_tables, rank_file, save_tables
from slm.engine.table_optimizer import TableOptimizer
from slm.engine.tables import Table, bounds_of
from slm.errors import CheckpointError

ROWS, WIDTH = 13, 4
NAMES = ("model.embed_tokens.weight", "lm_head.weight")


def make(rank, world_size, dtype=torch.float32, rows=ROWS):
    """A rank's tables after one step on its slice of the same gradients."""
    generator = torch.Generator().manual_seed(0)
    place, bounds = Place(rank, world_size, rank, torch.device("cpu")), bounds_of(rows, world_size)
    tables = []
    for name in NAMES:
        whole, grad = (torch.randn(rows, WIDTH, generator=generator) for _ in range(2))
        own = slice(bounds[rank], bounds[rank + 1])
        tables.append(Table(name, place, bounds, nn.Parameter(whole[own].to(dtype))))
        tables[-1].add_grad(grad[own].clone(), 1.0)
    return TableOptimizer(tables, OptimConfig(lr=0.1, clip=0.0))


def stepped(rank, world_size, **changes):
    optimizer = make(rank, world_size, **changes)
    optimizer.step(1.0, 1.0)
    return optimizer


def values(optimizer):
    return [
        (table.master.detach(), *(optimizer.adam.state[table.master][key] for key in ("step", "exp_avg", "exp_avg_sq")))
        for table in optimizer.tables
    ]


@pytest.mark.parametrize("chain", [(2, 1, 2), (1, 3, 2), (4, 4)])
def test_rows_and_states_survive_any_change_of_ranks(tmp_path, chain):
    for world_size in chain:
        (tmp_path / str(world_size)).mkdir(exist_ok=True)
    for rank in range(chain[0]):
        save_tables(stepped(rank, chain[0]), tmp_path / str(chain[0]))
    for before, after in pairwise(chain):
        for rank in range(after):
            fresh = make(rank, after)
            load_tables(fresh, tmp_path / str(before))
            for found, expected in zip(values(fresh), values(stepped(rank, after)), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            save_tables(fresh, tmp_path / str(after))


def test_a_bf16_table_keeps_its_fp32_master(tmp_path):
    save_tables(stepped(0, 1, dtype=torch.bfloat16), tmp_path)
    fresh = make(0, 1, dtype=torch.bfloat16)
    load_tables(fresh, tmp_path)
    for table, before in zip(fresh.tables, stepped(0, 1, dtype=torch.bfloat16).tables, strict=True):
        assert torch.equal(table.master, before.master)
        assert not torch.equal(table.master, table.master.bfloat16().float())
        assert torch.equal(table.weight, table.master.bfloat16())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("rows", "has 13 rows of model.embed_tokens.weight, the model 14"),
        ("file", "can't be read"),
        ("format", "newer than"),
        ("off", "with the vocabulary split"),
        ("on", "without the vocabulary split"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, damage, message):
    save_tables(stepped(0, 1), tmp_path)
    tables = make(0, 1, rows=14 if damage == "rows" else ROWS)
    if damage == "file":
        rank_file(tmp_path, 0).write_bytes(b"x")
    elif damage == "format":
        write_json(tmp_path / INDEX, read_json(tmp_path / INDEX) | {"format": 2})
    elif damage == "on":
        (tmp_path / INDEX).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_tables(None if damage == "off" else tables, tmp_path)


def test_the_step_is_that_of_adamw_with_clipping():
    optimizer = make(0, 1)
    optimizer.clip = 0.5
    twins = [nn.Parameter(table.master.detach().clone()) for table in optimizer.tables]
    for twin, table in zip(twins, optimizer.tables, strict=True):
        twin.grad = table.grad.clone()
    norm = float(torch.nn.utils.clip_grad_norm_(twins, 0.5))
    torch.optim.AdamW(twins, lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0).step()
    optimizer.step(norm, 0.5)
    for twin, table in zip(twins, optimizer.tables, strict=True):
        torch.testing.assert_close(table.master, twin)
        assert table.grad is None
