"""What ranks run for `test_plan_states.py`: a step of a stage, and the bytes of the states that it leaves."""

from __future__ import annotations

import json
import sys

from slm.config.loader import load_config
from slm.config.stage import StageConfig
from slm.engine.distributed import find_place, prepare_environment
from slm.engine.tables import tables_of


def nbytes(tensors) -> int:
    """Bytes of distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())


def measure(engine, anchor) -> dict[str, int]:
    found = measure_zero(engine)
    tables = tables_of(engine)
    if tables is not None:
        states = [tables.adam.state[table.master] for table in tables.tables]
        copies = [table.master for table in tables.tables if table.master is not table.weight]
        found["rows"] = nbytes(table.weight for table in tables.tables)
        found["rows' states"] = nbytes(copies) + sum(s[key].nbytes for s in states for key in ("exp_avg", "exp_avg_sq"))
    if anchor is not None:
        found["start"] = sum(start.nbytes for start, weight in anchor._starts.values())
        found["rows' start"] = sum(start.nbytes for _, start, _ in anchor._tables)
    return found


def measure_zero(engine) -> dict[str, int]:
    optimizer, parameters = engine.optimizer, list(engine.module.parameters())
    states = optimizer.optimizer.state.values()
    found = {"moments": sum(s[name].nbytes for s in states for name in ("exp_avg", "exp_avg_sq"))}
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        weights = [p.ds_tensor for p in parameters]
        found["weights"] = sum(t.ds_numel * t.element_size() for t in weights)
        own = {t.untyped_storage().data_ptr() for t in weights}
        flats = optimizer.fp32_partitioned_groups_flat
        found["copy"] = nbytes(t for t in flats if t.untyped_storage().data_ptr() not in own)
        found["gradients"] = optimizer.grad_partitions_flat_buffer.nbytes
        found["whole"] = sum(p.nbytes for p in parameters if p.ds_persist)
    else:
        found["weights"] = nbytes(p.data for p in parameters)
        found["copy"] = nbytes(optimizer.single_partition_of_fp32_groups)
    return found


def main() -> None:
    prepare_environment()
    import slm.engine.run as stage

    config, place = load_config(StageConfig, sys.argv[1]), find_place()

    def finish(run, *_) -> None:
        with open(f"{config.out}-{place.rank}.json", "w") as file:
            json.dump(measure(run.engine, run.anchor), file)

    stage._finish = finish
    stage.train(config)


if __name__ == "__main__":
    main()
