"""Configuration of `slm generate` and `slm demo`: how questions are asked, and where many of them come from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from slm.config.base import Job, Strict

Positive = Annotated[int, Field(gt=0)]


class Asking(Strict):
    """One model, and how it answers."""

    model: str
    """Step, checkpoint, adapter or Hugging Face folder."""
    speech: str | None = None
    """Folder of extractor and vocoder; null looks for that of the model's units in its run folder."""
    language: str | None = None
    """Code of the language that the vocoder speaks, where it has several; null is its default."""
    speaker: Annotated[int, Field(ge=0)] | None = None
    """Number of the vocoder's speaker, where it has several; null is the language's own."""
    task: Literal["llm", "asr", "tts", "sqa"] | None = None
    """Recipe that writes the prompt; null is `sqa` for speech and `llm` for text."""
    instruction: str = ""
    """Wording of asr and tts prompts; empty takes turns among the recipe's own."""
    max_new_tokens: Positive = 256
    """Longest answer."""
    batch_size: Positive = 64
    """Prompts decoded together."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Divides the logits; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest set of most likely tokens with at least this probability."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides, with a question's number, what is drawn."""
    constrained: bool = False
    """Only answers that are well-formed for their task can be said."""
    lora_scale: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the adapter's alpha / rank (arXiv 2505.17496)."""
    device: str = "auto"
    """`auto` is the GPU if there is one; or `cpu`, `cuda`, `cuda:1`. fp32 on a CPU, bf16 on a GPU."""


class GenerateJob(Job, Asking):
    """Ask a model every question of a folder or data set; the answers are a data set."""

    kind: ClassVar[str] = "generated"
    ignored: ClassVar[tuple[str, ...]] = (
        *("model", "speech", "audio", "data", "batch_size", "chunk", "device", "push_to_hub", "public"),
    )

    audio: str | None = None
    """Folder of audio files, at any depth."""
    data: str | None = None
    """Data set: saved by `save_to_disk`, a file (Parquet, JSON lines, text), a folder of such, or a name on the Hub."""
    name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    """Part of the data set."""
    column: str | None = None
    """Column with the questions: audio, lists of units, or text; null is `audio` for asr and sqa, `text` for the
    others."""
    limit: Positive | None = None
    """At most so many questions; null is all."""
    chunk: Positive = 256
    """Questions that are sorted by length together and written as one part; a killed job continues behind it."""
    push_to_hub: str | None = None
    """USER/NAME of a data set on the Hub, made if it is not there; the token is HF_TOKEN of the environment."""
    public: bool = False
    """Whether a data set that is made on the Hub is for all to see."""

    @model_validator(mode="after")
    def _one_source(self) -> GenerateJob:
        if (self.audio is None) == (self.data is None):
            raise ValueError("give audio (a folder) or data (a data set), one of them")
        return self
