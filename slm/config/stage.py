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
    also_train: list[str] = []
    """With LoRA: regular expressions over full names of modules that train whole and get no adapter."""
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
    lanes: Positive = 1
    """Parts of each source that are read side by side: a multiple of the number of nodes lets each node
    read its share of the bytes and no more. Belongs to the order, not to the machine; divides batch.rows."""


class DataConfig(Strict):
    """The stage's own data."""

    shards: str
    """Shard set: a folder, or a URL (http, https, s3)."""
    pack: PackConfig = PackConfig()
    overlong: Literal["drop"] | None = None
    """Samples longer than pack.length: drop leaves them out; null does too, and is an error above 1 %."""
    damaged: Literal["error", "skip"] = "error"
    """Damaged groups of any source: stop, or leave their samples out and count them in the run's record."""
    max_damaged: Share = 0.01
    """With damaged: skip, the share of a source's groups that may be lost; one always may."""
    loss_weight: LossWeight = 1.0
    """Factor of this source's tokens in the loss, which is the weighted mean over all labels of a step."""


class ReplayConfig(Strict):
    """Data of an earlier stage mixed in."""

    shards: str
    """That stage's shard set: a folder, or a URL."""
    ratio: Share = 0.05
    """How much of this source, per unit of the current stage's own data."""
    by: Literal["rows", "samples"] = "rows"
    """What is counted: packed rows (that is, tokens), or samples; a source that is too small starts over."""
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
    stop_after_skipped: Positive = 5
    """So many steps in a row that are skipped, for a loss or gradient that is no finite number, end the run."""


class AnchorConfig(Strict):
    """L2 to where the stage started, the previous stage's weights: weight · Σ(θ − θ₀)² over what trains."""

    mode: Literal["coupled", "decoupled"] = "coupled"
    """Gradient of the penalty, added before clipping; or a pull after the step that Adam's moments do not see."""
    weight: Annotated[float, Field(ge=0)] = 1e-3
    """λ of every group that has none of its own."""
    weights: dict[Literal["matrix", "vector", "vocabulary"], Annotated[float, Field(ge=0)]] = {}
    """λ of single groups: matrices (adapters too), vectors (norms, biases), vocabulary (embeddings and head)."""

    def weight_of(self, group: str) -> float:
        """λ of an optimizer group."""
        return next((weight for name, weight in self.weights.items() if name == group), self.weight)


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
    keep_best: bool = True
    """With `eval`: save at each lowest held-out loss so far, and keep that checkpoint too."""


class EvalConfig(Strict):
    """Held-out evaluation while training."""

    every: Positive = 500
    """Optimizer steps between evaluations; the last step has one too."""
    rows: Positive = 64
    """Packed rows that each source, replayed ones too, holds out; they are never trained on."""


class TrackConfig(Strict):
    """Where figures go besides metrics.jsonl."""

    wandb: bool = False
    """Log to Weights & Biases (offline without WANDB_API_KEY in the environment)."""
    project: str = "slm"
    """Project name there."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Peak of one device, for MFU and HFU; null is the data sheet's for known GPUs, measured on a CPU."""


class WatchConfig(Strict):
    """When a rank counts as lost, and the job ends."""

    silent_s: Annotated[float, Field(ge=5)] = 15.0
    """Seconds without a sign of life after which a rank is stopped, dead, or cut off; four times that before the
    first step, where imports and compilers can keep it from giving any."""
    stuck_s: Annotated[float, Field(ge=1)] | None = None
    """Seconds in which no rank gets on within a step; null is ten times the longest so far, at least 60. In the first
    step, and while evaluating, it is 540; reading, converting and writing models and checkpoints may take hours."""


class StageConfig(Job):
    """One training stage."""

    kind: ClassVar[str] = "stage"
    ignored: ClassVar[tuple[str, ...]] = ("zero", "checkpoint", "track", "watch", "model", "data", "replay", "eval")

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
    anchor: AnchorConfig | None = None
    """L2 to the previous stage; null is none."""
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is fp32 on a CPU, bf16 on a GPU."""
    duration: DurationConfig
    zero: str = "ds_configs/zero/zero3.json"
    """DeepSpeed JSON: ZeRO stage, offload, communication."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig | None = None
    """Loss on held-out rows while training; null holds nothing out."""
    track: TrackConfig = TrackConfig()
    watch: WatchConfig = WatchConfig()

    def inputs(self) -> dict[str, str]:
        """Base, previous step, and every shard set."""
        found = {"base": self.model.base, "shards": self.data.shards}
        if self.model.previous is not None:
            found["previous"] = self.model.previous
        found.update({f"replay[{i}]": source.shards for i, source in enumerate(self.replay)})
        return found

    def identity(self) -> dict[str, Any]:
        """All but paths, damage, how often is saved and evaluated, tracking, and where optimizer states are kept."""
        own = super().identity()
        own["model"] = self.model.model_dump(
            mode="json", exclude={"base", "previous", "activation_checkpointing", "head_chunk", "vocabulary_parallel"}
        )
        own["data"] = self.data.model_dump(mode="json", exclude={"shards", "damaged", "max_damaged"})
        own["replay"] = [source.model_dump(mode="json", exclude={"shards"}) for source in self.replay]
        own["eval"] = {"rows": self.eval.rows} if self.eval is not None else None
        return own

    @model_validator(mode="after")
    def _consistent(self) -> StageConfig:
        if self.model.train == "full" and self.model.previous is not None:
            raise ValueError(
                "model.previous continues an adapter; with model.train: full give that step's model as model.base"
            )
        if self.model.train == "full" and self.model.also_train:
            raise ValueError("model.also_train is for LoRA; with model.train: full everything trains")
        whole = self.model.train == "full" or self.model.vocabulary == "full"
        if self.model.vocabulary_parallel is True and not whole:
            raise ValueError("model.vocabulary_parallel splits matrices that train whole: set model.vocabulary to full")
        if self.batch.rows % self.batch.micro_rows:
            raise ValueError(
                f"batch.rows ({self.batch.rows}) must be a multiple of batch.micro_rows ({self.batch.micro_rows})"
            )
        if self.batch.rows % self.data.pack.lanes:
            raise ValueError(
                f"batch.rows ({self.batch.rows}) must be a multiple of data.pack.lanes ({self.data.pack.lanes})"
            )
        return self
