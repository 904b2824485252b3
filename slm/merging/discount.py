"""The LoRA-scale discount: a trained adapter used at a fraction of its strength (arXiv 2505.17496).

Written as a PEFT adapter of its own whose alpha is multiplied by the factor, so any tool that reads
adapters reads the discount. `alpha` alone does not reach the embeddings and the head, which are
trained as whole matrices: scope `all` draws those back to the base by the same factor.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from slm.artifact import building, write_atomic, write_manifest
from slm.config.base import to_make
from slm.config.models import DiscountJob
from slm.errors import CheckpointError
from slm.model.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, check_tensors, read_adapter, save_tensors
from slm.model.reference import resolve
from slm.model.weights import EMBEDDING, HEAD, read_tensor, shapes_of


def discount(job: DiscountJob) -> bool:
    """Make the `discount` artifact of a job.

    Returns:
        False when it was up to date already.

    Raises:
        CheckpointError: the model is no adapter.
    """
    inputs = to_make(job)
    if inputs is None:
        return False
    reference = resolve(job.model)
    if reference.adapter is None:
        raise CheckpointError(
            "only an adapter can be discounted", where=job.model, mend="give a step trained with LoRA"
        )
    config, tensors = read_adapter(reference.adapter)
    config["lora_alpha"] = config["lora_alpha"] * job.scale
    if job.scope == "all":
        for name in [name for name in tensors if ".lora_" not in name]:
            start = _base_tensor(reference.base, name.removeprefix(PREFIX)).float()
            tensors[name] = start + job.scale * (tensors[name].float() - start)
    check_tensors(tensors, job.out)
    with building(job.out) as folder:
        adapter = Path(folder) / "adapter"
        adapter.mkdir()
        save_tensors(tensors, adapter / ADAPTER_WEIGHTS)
        write_atomic(adapter / ADAPTER_CONFIG, json.dumps(config, indent=1, sort_keys=True) + "\n")
        about = {"model": job.model, "scale": job.scale, "scope": job.scope}
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs, about=about)
    return True


def _base_tensor(base: Path, name: str) -> Tensor:
    """The base's tensor; a tied head is the embeddings, and not in the file."""
    shapes = shapes_of(base)
    return read_tensor(base, EMBEDDING if name == HEAD and HEAD not in shapes else name)
