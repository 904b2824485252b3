"""Configuration of the tiny world: its corpus, units, tokenizer, shards, test sets, and base model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from slm.config.base import Job, Strict
from slm.config.speech import MelKMeansConfig

Rate = Annotated[int, Field(ge=80, le=450)]
Pitch = Annotated[int, Field(ge=0, le=99)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class TinySpeaker(Strict):
    """One way of speaking."""

    voice: str = "en-us"
    """espeak-ng voice, optionally with a variant: `en-us+f2`."""
    rate: Rate = 185
    """Words a minute."""
    pitch: Pitch = 50
    """0 to 99; 50 is the voice's own."""

    @property
    def key(self) -> tuple[str, int, int]:
        """Voice, rate, pitch."""
        return self.voice, self.rate, self.pitch


class TinyTextsConfig(Strict):
    """How many texts, and of what kinds; what the three shares leave is random strings of words."""

    count: Count
    """Texts; the world's own take turns."""
    questions: Share = 0.5
    """Share of whole questions."""
    statements: Share = 0.33
    """Share of whole answer sentences."""
    answers: Share = 0.05
    """Share of bare answers."""

    @model_validator(mode="after")
    def _is_a_whole(self) -> TinyTextsConfig:
        if self.questions + self.statements + self.answers > 1 + 1e-9:
            raise ValueError("the shares of questions, statements and answers sum to more than 1")
        return self


class TinyCorpusConfig(Strict):
    """Which texts are spoken, by whom, how often."""

    voices: Annotated[list[str], Field(min_length=1)] = ["en-us", "en-us+f2", "en-us+m3", "en", "en+f4", "en+m1"]
    """Voices of training utterances and of the tests of known voices."""
    held_out_voices: Annotated[list[str], Field(min_length=1)] = ["en-us+m7", "en-gb-scotland+f1"]
    """Voices of one test set, never heard in training."""
    rates: Annotated[list[Rate], Field(min_length=1)] = [170, 185, 200, 215]
    """Words a minute; every voice speaks at each."""
    pitches: Annotated[list[Pitch], Field(min_length=1)] = [35, 50, 65]
    """Pitches of every voice."""
    answer_speaker: TinySpeaker = TinySpeaker()
    """Who speaks TTS targets and answers; no input of ASR or SQA has this speaker."""
    spoken_answer: Literal["answer", "sentence"] = "answer"
    """What an answer of SQA says aloud: the bare answer, or the whole sentence."""
    questions: Annotated[int, Field(ge=1)] | None = None
    """Questions of the world that exist, the first so many of each topic in turn; null is all."""

    asr: TinyTextsConfig = TinyTextsConfig(count=5000)
    """Training utterances of ASR."""
    tts: TinyTextsConfig = TinyTextsConfig(count=1500, questions=0.2, statements=0.2, answers=0.2)
    """Training examples of TTS; a text that comes again has another instruction."""
    sqa_variants: Annotated[int, Field(ge=1)] = 20
    """Training utterances of each question in SQA; those of ASR are used first."""
    question_copies: Annotated[int, Field(ge=1)] = 8
    """Times each text question occurs in the LLM set."""
    instructions: Count = 960
    """Training instructions in the LLM set."""

    test_asr: Count = 120
    """Test utterances of the world's own sentences."""
    test_asr_random: Count = 60
    """Test utterances of random strings of words."""
    test_tts: Count = 40
    """Own sentences that are held out from TTS training, and tested."""
    test_questions: Count = 120
    """Questions asked in text, by known voices, and by held-out voices."""
    test_instructions: Count = 60
    """Test instructions, of unseen arguments."""

    @model_validator(mode="after")
    def _consistent(self) -> TinyCorpusConfig:
        both = sorted(set(self.voices) & set(self.held_out_voices))
        if both:
            raise ValueError(f"voices that are held out can't be trained on: {', '.join(both)}")
        return self


class TinyTokenizerConfig(Strict):
    """Byte-level BPE on the world's text."""

    size: int = Field(default=1024, ge=300, le=65_536)
    """Entries at most, special tokens included, units not."""
    prefix_space: bool = True
    """Tokenise a word alike at the start of a text and inside it."""


class TinyShardsConfig(Strict):
    """How the training sets are written."""

    group_size: int = Field(default=64, ge=1)
    """Samples of a group."""
    max_length: int = Field(default=512, ge=16)
    """Tokens of a sample at most; longer ones are dropped and counted."""


class TinyDataJob(Job):
    """Build the tiny world's data: corpus, units, tokenizer, shards, test sets."""

    kind: ClassVar[str] = "tiny-data"
    ignored: ClassVar[tuple[str, ...]] = ("job", "workers")

    job: Literal["tiny"] = "tiny"
    """Which job this file configures."""
    seed: int = Field(default=0, ge=0)
    """Decides texts, speakers and order."""
    workers: Annotated[int, Field(ge=1, le=64)] | None = None
    """Speech programs running side by side; null is one per processor. Changes no byte."""
    corpus: TinyCorpusConfig = TinyCorpusConfig()
    """What is spoken."""
    speech: MelKMeansConfig = MelKMeansConfig()
    """Units and vocoder."""
    tokenizer: TinyTokenizerConfig = TinyTokenizerConfig()
    """Text tokens."""
    shards: TinyShardsConfig = TinyShardsConfig()
    """Training sets."""


class TinyBaseJob(Job):
    """Make the tiny world's random-weight Llama, text vocabulary only."""

    kind: ClassVar[str] = "base"
    ignored: ClassVar[tuple[str, ...]] = ("tokenizer",)

    tokenizer: str
    """Tokenizer folder of the data; its text part becomes the model's."""
    hidden_size: int = Field(default=192, ge=8)
    """Width."""
    layers: int = Field(default=3, ge=1)
    """Decoder layers."""
    heads: int = Field(default=3, ge=1)
    """Attention heads."""
    kv_heads: int = Field(default=3, ge=1)
    """Key-value heads."""
    intermediate_size: int = Field(default=512, ge=8)
    """Width of the feed-forward part."""
    max_positions: int = Field(default=2048, ge=64)
    """Longest sequence."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary positions."""
    tie_embeddings: bool = False
    """One matrix for input and output."""
    initializer_range: float = Field(default=0.04, gt=0)
    """Standard deviation of the weights."""
    seed: int = Field(default=0, ge=0)
    """Decides the weights."""

    @model_validator(mode="after")
    def _divides(self) -> TinyBaseJob:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size {self.hidden_size} is no even multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        return self

    def inputs(self) -> dict[str, str]:
        """The tokenizer artifact."""
        return {"tokenizer": self.tokenizer}
