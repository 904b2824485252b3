"""A rank of a contender: TRL's SFTTrainer, or the HF Trainer with DeepSpeed ZeRO-3. Started by benchmarks/engine.py.

The matrices of the vocabulary train in place, as ours do: `modules_to_save` would cost them a frozen copy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from engine_data import LORA_TARGETS, SIZES, Size, memory_mb, read_documents, report, same_adapters

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


def adapted(base: str, size: Size, bf16: bool) -> Any:
    """Base with fresh LoRA factors, embeddings and head trained in place."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    same_adapters()
    config = AutoConfig.from_pretrained(base)
    config.pad_token_id, config.use_cache = None, False
    model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.bfloat16 if bf16 else torch.float32)
    lora = LoraConfig(
        r=size.lora_rank, lora_alpha=16, lora_dropout=0.0, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
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


def main() -> None:
    """One rank: engine_contenders.py FOLDER; FOLDER/job.json says what to do."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    size, kind, cuda = SIZES[job["size"]], job["kind"], job["device"] == "cuda"
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    if kind == "trl":
        from trl import SFTConfig, SFTTrainer
    else:
        import deepspeed
        import deepspeed.ops

        if not cuda:
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(job["threads"])
    imports = memory_mb("VmRSS")
    ranks, micro = int(os.environ["WORLD_SIZE"]), job["micro"]
    packing = job.get("packing", False)
    rows_a_step = max(1, round(size.documents * size.mean / size.row)) if packing else size.documents
    common = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows_a_step // (micro * ranks),
        "max_steps": size.warm + size.timed if not packing else -1,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "bf16": cuda,
        "use_cpu": not cuda,
        "disable_tqdm": True,
        "gradient_checkpointing": job["checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    steps: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        """Seconds and loss of each optimizer step."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            steps.append({"seconds": time.perf_counter() - self.begin})

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                steps[-1]["loss"] = logs["loss"]

    class InOrder:
        """Documents in the order in which everybody sees them."""

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]

    data = dataset_of(folder.parent / "documents.npz", kind)
    if kind == "trl":

        class InOrderSFT(InOrder, SFTTrainer):
            """TRL's trainer."""

        arguments = SFTConfig(**common, packing=packing, max_length=size.row, completion_only_loss=True)
        model = adapted(job["base"], size, cuda)
        trainer = InOrderSFT(
            model=model, args=arguments, train_dataset=data, processing_class=tokenizer(), callbacks=[Clock()]
        )
    else:

        class InOrderHF(InOrder, Trainer):
            """The HF trainer."""

        arguments = TrainingArguments(**common, deepspeed=ZERO3 | {"bf16": {"enabled": cuda}})
        tell_accelerate_its_rank()
        model = adapted(job["base"], size, cuda)
        trainer = InOrderHF(model=model, args=arguments, train_dataset=data, data_collator=pad, callbacks=[Clock()])
        tell_accelerate_its_rank()
    trainer.train()
    fed = list(trainer.train_dataset)
    for i, step in enumerate(steps):
        rows = fed[i * rows_a_step : (i + 1) * rows_a_step]
        masks = [
            row["completion_mask"] if "completion_mask" in row else [x != -100 for x in row["labels"]] for row in rows
        ]
        step["supervised"] = sum(sum(mask[1:]) for mask in masks)
        step["tokens"] = sum(len(mask) for mask in masks)
    more = {"device_peak_mb": torch.cuda.max_memory_allocated() / 2**20} if cuda else {}
    report(folder, int(os.environ["RANK"]), imports, steps, **more)


if __name__ == "__main__":
    main()
