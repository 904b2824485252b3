"""What all contenders of benchmarks/engine.py share: models, documents, jobs, how a rank reports. No import of slm."""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SUPERVISED_SHARE = 0.45
LORA_TARGETS = ["q_proj", "k_proj", "v_proj"]
LORA_ALPHA = 16
RATE = 1e-3


@dataclass(frozen=True)
class Size:
    """A model and its batch.

    Attributes:
        documents: of an optimizer step, over all ranks.
        mean: their mean length in tokens.
        warm, timed: steps before the clock starts, and steps that are timed, in each process.
        micros: micro-batches that padding contenders are tried with, in documents of a rank.
        row: longest packed row in tokens.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    documents: int
    mean: int
    warm: int
    timed: int
    micros: tuple[int, ...]
    lora_rank: int = 16
    tied: bool = False
    row: int = 4096


SIZES = {
    "pico": Size(512, 32, 2, 4, 4, 64, 8, 30, 1, 2, (1, 4), row=256),
    "tiny": Size(512, 128, 4, 4, 4, 352, 32, 85, 3, 8, (4, 16)),
    "bigvocab": Size(138_368, 160, 8, 5, 5, 448, 8, 373, 1, 1, (1, 2)),
    "1b": Size(138_368, 2048, 16, 32, 8, 8192, 64, 400, 3, 10, (1, 4), lora_rank=64, tied=True),
    "8b": Size(138_368, 4096, 32, 32, 8, 14_336, 64, 400, 3, 10, (1, 4), lora_rank=64),
}


@dataclass(frozen=True)
class Job:
    """One contender.

    Attributes:
        name: in the table; ours start with "ours".
        kind: `ours`, `hf` (HF Trainer + DeepSpeed ZeRO-3) or `trl` (SFTTrainer).
        micro: documents of a micro-batch of a rank, for those that pad.
        checkpointing: activations are recomputed.
        packing: TRL's; its steps hold other documents, so their losses are not compared.
        model: keys of the stage's `model` section, for ours.
        attention: transformers' name of the backend; empty is the default.
        size, device, base, threads: filled in when it is started.
    """

    name: str
    kind: str
    ranks: int
    micro: int = 1
    checkpointing: bool = False
    packing: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    attention: str = ""
    size: str = ""
    device: str = "cpu"
    base: str = ""
    threads: int = 1

    @property
    def ours(self) -> bool:
        """Whether it is this project's engine."""
        return self.kind == "ours"

    @property
    def dimensions(self) -> Size:
        """Of its model and batch."""
        return SIZES[self.size]

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device == "cuda"

    def write(self, folder: Path) -> None:
        """Leave it for the ranks."""
        (folder / "job.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """What `write` left."""
        return cls(**json.loads((folder / "job.json").read_text()))


def write_base(folder: Path, size: Size, device: str) -> None:
    """A Llama with random weights as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.mlp,
        max_position_embeddings=8192,
        tie_word_embeddings=size.tied,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(folder)


def write_documents(file: Path, size: Size) -> None:
    """Documents of all steps in order: random ids, the last part of each supervised."""
    draw = np.random.default_rng(0)
    count = size.documents * (size.warm + size.timed)
    lengths = np.clip(draw.gamma(4.0, size.mean / 4.0, count).astype(int), 8, min(size.row, 4 * size.mean))
    ids = draw.integers(8, size.vocabulary, int(lengths.sum())).astype(np.int32)
    np.savez(file, ids=ids, lengths=lengths)


def read_documents(file: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, bool mask of the supervised tokens) of each document."""
    saved = np.load(file)
    pieces = np.split(saved["ids"], np.cumsum(saved["lengths"])[:-1])
    return [(ids, np.arange(len(ids)) >= len(ids) * (1 - SUPERVISED_SHARE)) for ids in pieces]


def same_adapters() -> None:
    """Fresh LoRA factors that depend on their shape only, so that every contender starts from the same ones."""
    import torch

    draw = torch.nn.init.kaiming_uniform_

    def seeded(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(str(tuple(tensor.shape)).encode()))
            return draw(tensor, *args, **kwargs)

    torch.nn.init.kaiming_uniform_ = seeded


def memory_mb(field: str) -> float:
    """A field of /proc/self/status: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def work_of(documents: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """What a step over these documents is: labels (a document's first token is none), tokens, attended pairs."""
    return {
        "supervised": sum(int(mask[1:].sum()) for _, mask in documents),
        "tokens": sum(len(ids) for ids, _ in documents),
        "pairs": sum(len(ids) * (len(ids) + 1) // 2 for ids, _ in documents),
    }


def report(folder: Path, rank: int, imports_mb: float, steps: list[dict[str, float]], cuda: bool) -> None:
    """Leave what a rank measured; each step has seconds, loss, and what `work_of` says."""
    import torch

    found: dict[str, Any] = {"peak_mb": memory_mb("VmHWM") - imports_mb, "imports_mb": imports_mb, "steps": steps}
    if cuda:
        found["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    chosen, work, place = SIZES[sys.argv[1]], Path(sys.argv[2]), sys.argv[3]
    write_base(work / "base", chosen, place)
    write_documents(work / "documents.npz", chosen)
