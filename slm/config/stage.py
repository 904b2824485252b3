"""The configuration of one training stage (`ds_configs/stages/*.yaml`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from slm.config.base import Job, Strict

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
LossWeight = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class LoraConfig(Strict):
    """Low-rank adapters on linear layers."""

    rank: Positive = 64
    """Rank r of the factors."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the adapter's input while training."""
    targets: str | list[str] = ["q_proj", "k_proj", "v_proj"]
    """Names of the linear layers, or one regular expression over full module names."""


class Every(Strict):
    """Checkpoint the activations of each k-th decoder layer."""

    every: Positive
    """k: 1 is all layers, 2 every other one."""


class ModelConfig(Strict):
    """What is trained, and from where it starts."""

    base: str
    """Folder of the base: a Hugging Face model with the unit rows already in its vocabulary."""
    previous: str | None = None
    """Step whose adapter this stage continues; null starts a new adapter."""
    train: Literal["lora", "full"] = "lora"
    """LoRA adapters, or every weight."""
    vocabulary: Literal["full", "new_rows", "frozen"] = "full"
    """With LoRA: train embeddings and head as whole matrices, only the units' rows, or leave them as they are."""
    vocabulary_parallel: Literal["auto"] | bool = False
    """Split embeddings and head by rows over the ranks instead of by ZeRO; auto is wherever they train whole."""
    lora: LoraConfig = LoraConfig()
    activation_checkpointing: Literal["none", "all"] | Every = "none"
    """Recompute activations in the backward pass instead of keeping them."""
    head_chunk: Positive | None = None
    """Positions whose logits are held at a time; null is 128 on a CPU, 2048 on a GPU."""


class PackConfig(Strict):
    """Packing of samples into rows."""

    length: Positive = 4096
    """Tokens per row."""
    window: Positive = 64
    """Groups of 256 samples that are shuffled and packed together."""


class DataConfig(Strict):
    """The stage's own data."""

    shards: str
    """Folder of the shard set."""
    pack: PackConfig = PackConfig()
    loss_weight: LossWeight = 1.0
    """Factor of this source's tokens in the loss, which is the weighted mean over all labels of a step."""


class ReplayConfig(Strict):
    """Data of an earlier stage mixed in."""

    shards: str
    """Folder of that stage's shard set."""
    ratio: Share = 0.05
    """Packed rows (that is, tokens) of this source per row of the current stage."""
    loss_weight: LossWeight = 1.0
    """Factor of this source's tokens in the loss."""


class BatchConfig(Strict):
    """Rows per optimizer step and how they are cut."""

    rows: Positive = 8
    """Packed rows of one optimizer step, over all ranks."""
    micro_rows: Positive = 1
    """Packed rows that one rank computes at a time."""


class OptimConfig(Strict):
    """AdamW."""

    lr: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate."""
    vocabulary_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of embeddings and head; null is `lr`."""
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), strict=False)
    """Decay of the two moments."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay of matrices; norms and vocabulary are left out."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 is off."""


class ScheduleConfig(Strict):
    """Learning rate over the run."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps spent rising to the peak."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the peak at the last step."""


class DurationConfig(Strict):
    """How long to train; exactly one of the three."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the current source."""
    steps: Positive | None = None
    """Optimizer steps."""
    tokens: Positive | None = None
    """Tokens of the current source."""

    @model_validator(mode="after")
    def _exactly_one(self) -> DurationConfig:
        if sum(value is not None for value in (self.epochs, self.steps, self.tokens)) != 1:
            raise ValueError("set exactly one of epochs, steps, tokens")
        return self


class CheckpointConfig(Strict):
    """Saving for resume."""

    every: Positive = 500
    """Optimizer steps between checkpoints."""
    keep: Positive = 2
    """Newest checkpoints that are kept."""


class TrackConfig(Strict):
    """Where figures go besides metrics.jsonl."""

    wandb: bool = False
    """Log to Weights & Biases (offline without WANDB_API_KEY in the environment)."""
    project: str = "slm"
    """Project name there."""


class StageConfig(Job):
    """One training stage."""

    kind: ClassVar[str] = "stage"
    ignored: ClassVar[tuple[str, ...]] = ("zero", "checkpoint", "track", "model", "data", "replay")

    stage: Literal["llm", "asr", "tts", "sqa"]
    """The recipe that the shards were made with."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of data order, new weights and dropout."""
    model: ModelConfig
    data: DataConfig
    replay: list[ReplayConfig] = []
    """Earlier stages' data; empty is the naive chain."""
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is fp32 on a CPU, bf16 on a GPU."""
    duration: DurationConfig
    zero: str = "ds_configs/zero/zero3.json"
    """DeepSpeed JSON: ZeRO stage, offload, communication."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()

    def inputs(self) -> dict[str, str]:
        """Base, previous step, and every shard set."""
        found = {"base": self.model.base, "shards": self.data.shards}
        if self.model.previous is not None:
            found["previous"] = self.model.previous
        found.update({f"replay[{i}]": source.shards for i, source in enumerate(self.replay)})
        return found

    def identity(self) -> dict[str, Any]:
        """All but paths, checkpoint cadence, tracking, and where optimizer states are kept."""
        own = super().identity()
        own["model"] = self.model.model_dump(
            mode="json", exclude={"base", "previous", "activation_checkpointing", "head_chunk", "vocabulary_parallel"}
        )
        own["data"] = self.data.model_dump(mode="json", exclude={"shards"})
        own["replay"] = [source.model_dump(mode="json", exclude={"shards"}) for source in self.replay]
        return own

    @model_validator(mode="after")
    def _consistent(self) -> StageConfig:
        if self.model.train == "full" and self.model.previous is not None:
            raise ValueError(
                "model.previous continues an adapter; with model.train: full give that step's model as model.base"
            )
        whole = self.model.train == "full" or self.model.vocabulary == "full"
        if self.model.vocabulary_parallel is True and not whole:
            raise ValueError("model.vocabulary_parallel splits matrices that train whole: set model.vocabulary to full")
        if self.batch.rows % self.batch.micro_rows:
            raise ValueError(
                f"batch.rows ({self.batch.rows}) must be a multiple of batch.micro_rows ({self.batch.micro_rows})"
            )
        return self
