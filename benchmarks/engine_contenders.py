"""A rank of a contender: TRL's SFTTrainer, or the HF Trainer with DeepSpeed ZeRO-3. Started by benchmarks/engine.py.

The matrices of the vocabulary train in place, as ours do: `modules_to_save` would cost them a frozen copy.
The clock holds what the Trainer does between `on_step_begin` and `on_step_end`; batches are made before it starts.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine_data import (
    LORA_ALPHA,
    LORA_TARGETS,
    RATE,
    Job,
    memory_mb,
    read_documents,
    report,
    same_adapters,
    work_of,
)

ZERO3 = {
    "zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": 1_000_000_000,
}


def dataset_of(file: Path, kind: str) -> Any:
    """The documents as a datasets.Dataset: labels for the Trainer, a completion mask for TRL."""
    from datasets import Dataset

    rows = []
    for ids, mask in read_documents(file):
        row = {"input_ids": ids.tolist()}
        if kind == "trl":
            row["completion_mask"] = mask.astype(int).tolist()
        else:
            row["labels"] = [int(token) if wanted else -100 for token, wanted in zip(ids, mask, strict=True)]
        rows.append(row)
    return Dataset.from_list(rows)


def pad(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Right-padded batch."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> Any:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)}


def tell_accelerate_its_rank() -> None:
    """accelerate 1.15 believes in one process on a CPU under DeepSpeed: both ranks would train on the same data."""
    from accelerate.state import PartialState

    place = {"num_processes": int(os.environ["WORLD_SIZE"]), "process_index": int(os.environ["RANK"])}
    PartialState._shared_state.update(place, local_process_index=place["process_index"])


def adapted(job: Job) -> Any:
    """Base with fresh LoRA factors, embeddings and head trained in place."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    same_adapters()
    config = AutoConfig.from_pretrained(job.base)
    config.pad_token_id, config.use_cache = None, False
    dtype = torch.bfloat16 if job.cuda else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.base, config=config, dtype=dtype)
    lora = LoraConfig(
        r=job.dimensions.lora_rank,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight.requires_grad_(True)
    return model


def tokenizer() -> Any:
    """TRL asks for one; the data are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def rows_of_step(job: Job) -> int:
    """Rows of the data set that an optimizer step takes: documents, or packed rows of about as many tokens."""
    size = job.dimensions
    return max(1, round(size.documents * size.mean / size.row)) if job.packing else size.documents


def arguments_of(job: Job, folder: Path) -> dict[str, Any]:
    """What both trainers are told."""
    size = job.dimensions
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": job.micro,
        "gradient_accumulation_steps": rows_of_step(job) // (job.micro * job.ranks),
        "max_steps": -1 if job.packing else size.warm + size.timed,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "bf16": job.cuda,
        "use_cpu": not job.cuda,
        "disable_tqdm": True,
        "gradient_checkpointing": job.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }


def make_clock(cuda: bool) -> Any:
    """A callback whose `steps` get the seconds and the loss of each optimizer step."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Seconds, seconds of all threads, and loss of each optimizer step."""

        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begin, self.used = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            used = time.process_time() - self.used
            self.steps.append({"seconds": time.perf_counter() - self.begin, "cpu": used})

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                self.steps[-1]["loss"] = logs["loss"]

    return Clock()


def in_order(trainer: type) -> type:
    """The trainer, with the documents in the order in which everybody sees them."""
    from torch.utils.data import SequentialSampler

    class InOrder(trainer):  # type: ignore[misc]
        """Takes the data set from its beginning."""

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    return InOrder


def trl_trainer(job: Job, folder: Path, clock: Any) -> Any:
    """TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    more = {"packing": job.packing, "max_length": job.dimensions.row, "completion_only_loss": True}
    return in_order(SFTTrainer)(
        model=adapted(job),
        args=SFTConfig(**arguments_of(job, folder), **more),
        train_dataset=dataset_of(folder.parent / "documents.npz", job.kind),
        processing_class=tokenizer(),
        callbacks=[clock],
    )


def hf_trainer(job: Job, folder: Path, clock: Any) -> Any:
    """The HF Trainer under ZeRO-3; its arguments come first, so that the model is partitioned while it is loaded."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(**arguments_of(job, folder), deepspeed=ZERO3 | {"bf16": {"enabled": job.cuda}})
    tell_accelerate_its_rank()
    trainer = in_order(Trainer)(
        model=adapted(job),
        args=arguments,
        train_dataset=dataset_of(folder.parent / "documents.npz", job.kind),
        data_collator=pad,
        callbacks=[clock],
    )
    tell_accelerate_its_rank()
    return trainer


def fed_documents(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(ids, mask of the supervised tokens) of the documents in a row of a trainer's data set."""
    mask = np.array(row["completion_mask"] if "completion_mask" in row else row["labels"]) > 0
    found, start = [], 0
    for length in row.get("seq_lengths") or [len(mask)]:
        found.append((row["input_ids"][start : start + length], mask[start : start + length]))
        start += length
    return found


def main() -> None:
    """One rank: engine_contenders.py FOLDER; FOLDER/job.json says what to do."""
    folder = Path(sys.argv[1])
    job = Job.read(folder)
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    from transformers import Trainer  # noqa: F401

    if job.kind == "trl":
        import trl  # noqa: F401
        from trl import SFTTrainer  # noqa: F401
    else:
        import deepspeed
        import deepspeed.ops

        if not job.cuda:
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(job.threads)
    imports = memory_mb("VmRSS")
    clock = make_clock(job.cuda)
    trainer = (trl_trainer if job.kind == "trl" else hf_trainer)(job, folder, clock)
    trainer.train()
    fed, each = list(trainer.train_dataset), rows_of_step(job)
    for i, step in enumerate(clock.steps):
        step |= work_of([document for row in fed[i * each : (i + 1) * each] for document in fed_documents(row)])
    report(folder, int(os.environ.get("RANK", "0")), imports, clock.steps, job.cuda)


if __name__ == "__main__":
    main()
