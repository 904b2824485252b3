"""A model with its extractor and vocoder: questions in, answers in text and speech out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slm.errors import DataError
from slm.generation.constraint import Constraint
from slm.generation.generate import GREEDY, Sampling, generate
from slm.generation.output import Output, interleaving_faults, split_output, to_wave
from slm.generation.questions import Question, Task, prompt_of
from slm.speech.audio import SAMPLE_RATE
from slm.stages import RECIPES, Form
from slm.stages.sqa import split_answer
from slm.tokens.chat import end_of_answer, render_prompts
from slm.tokens.vocabulary import strip_units, text_to_units

if TYPE_CHECKING:
    from slm.model.load import Loaded
    from slm.speech.extractor import Extractor
    from slm.speech.vocoder import Vocoder
    from slm.tokens.vocabulary import UnitSet


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        max_new_tokens: longest answer; less where the model's positions end.
        batch_size: prompts decoded together.
        sampling: greedy unless told otherwise.
        constrained: only well-formed answers of the task can be said.
    """

    max_new_tokens: int = 256
    batch_size: int = 64
    sampling: Sampling = GREEDY
    constrained: bool = False


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        question, prompt: what it was asked, and how that was written.
        output: everything it said, as text and units.
        text: the answer in writing.
        transcript: of a spoken question: what it heard; empty in the other tasks.
        units: of the spoken answer.
        faults: of its form: those of the interleaving, and `unfinished`.
    """

    question: Question
    prompt: str
    output: Output
    text: str
    transcript: str
    units: list[int]
    faults: list[str]


@dataclass(frozen=True)
class Refused:
    """A question that was not asked, and why."""

    question: Question
    why: str


@dataclass
class Speaker:
    """A model, and what it hears and speaks with.

    Attributes:
        loaded: the model.
        extractor, vocoder: of its units; None where there are none at hand.
    """

    loaded: Loaded
    extractor: Extractor | None = None
    vocoder: Vocoder | None = None
    _constraints: dict[Form, Constraint] = field(default_factory=dict)

    @property
    def units(self) -> UnitSet | None:
        """The model's unit set."""
        return self.loaded.vocabulary.units

    def hear(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        """Waves, float32 [samples] at 16 kHz, as units with repeats.

        Raises:
            DataError: there is no extractor, or a wave can't be used or is too long for the model.
        """
        if self.extractor is None:
            raise DataError(
                "spoken questions need the extractor of the model's units",
                mend="--speech FOLDER: the speech folder of the data the model was trained on",
            )
        longest = max((len(wave) for wave in waves), default=0) / SAMPLE_RATE
        if self.units is not None and self.units.input == "kept" and longest * self.units.rate_hz > self._positions():
            # Hours of sound would be listened to for a prompt that can't be asked.
            raise DataError(
                f"a recording of {longest:.0f} s is {longest * self.units.rate_hz:.0f} units, the model has "
                f"{self._positions()} positions",
                mend="cut it into shorter ones",
            )
        return [row.tolist() for row in self.extractor.units(waves)]

    def wave(self, answer: Answer) -> np.ndarray:
        """The spoken answer, float32 at 16 kHz; empty without units or vocoder."""
        if self.vocoder is None:
            return np.zeros(0, np.float32)
        return to_wave(answer.units, self.vocoder)

    def answer(
        self, task: Task, questions: Sequence[Question], decoding: Decoding = Decoding()
    ) -> list[Answer | Refused]:
        """Answer questions of one task, in their order; one that can't be asked is refused, the others go on.

        Raises:
            DataError: the task answers in speech, well-formed, and the model has no units.
        """
        prompts: dict[int, str] = {}
        found: dict[int, Answer | Refused] = {}
        for place, question in enumerate(questions):
            try:
                prompts[place] = prompt_of(task, question, self.units)
            except DataError as error:
                found[place] = Refused(question, error.what)
        places, longest = list(prompts), self._positions()
        ids = dict(zip(places, render_prompts(self.loaded.tokenizer, list(prompts.values())), strict=True))
        for place in [place for place in places if len(ids[place]) >= longest]:
            why = f"the prompt has {len(ids[place])} tokens, the model {longest} positions"
            found[place] = Refused(questions[place], why)
            del prompts[place]
        tokenizer, vocabulary = self.loaded.tokenizer, self.loaded.vocabulary
        generated = generate(
            self.loaded.model,
            [ids[place] for place in prompts],
            stop=self._stop(),
            max_new_tokens=[min(decoding.max_new_tokens, longest - len(ids[place])) for place in prompts],
            batch_size=decoding.batch_size,
            sampling=decoding.sampling,
            numbers=[questions[place].number for place in prompts],
            size=vocabulary.size,
            constraint=self._constraint(RECIPES[task].form) if decoding.constrained else None,
        )
        for (place, prompt), one in zip(prompts.items(), generated, strict=True):
            found[place] = taken_apart(task, questions[place], prompt, split_output(tokenizer, one, vocabulary))
        return [found[place] for place in range(len(questions))]

    def _constraint(self, form: Form) -> Constraint:
        if form not in self._constraints:
            loaded = self.loaded
            self._constraints[form] = Constraint(form, loaded.tokenizer, loaded.vocabulary, self._stop())
        return self._constraints[form]

    def _stop(self) -> set[int]:
        tokenizer = self.loaded.tokenizer
        return {end_of_answer(tokenizer)} | ({tokenizer.eos_token_id} - {None})

    def _positions(self) -> int:
        return int(getattr(self.loaded.model.config, "max_position_embeddings", None) or 1 << 30)


def taken_apart(task: Task, question: Question, prompt: str, output: Output) -> Answer:
    """An output by the form of its task."""
    text, transcript, woven = output.text, "", output.raw
    form = RECIPES[task].form
    if form == "spoken_answer":
        parts = split_answer(output.raw)
        transcript, text, woven = strip_units(parts.transcript), strip_units(parts.answer), parts.interleaved
    faults = [] if output.finished else ["unfinished"]
    if form == "text":
        faults += [] if text else ["empty"]
        faults += ["units_in_text"] if output.units else []
    else:
        faults += interleaving_faults(woven)
    return Answer(question, prompt, output, text.strip(), transcript.strip(), text_to_units(woven), faults)


def open_speaker(
    loaded: Loaded,
    speech: str | Path | None,
    *,
    device: str = "auto",
    language: str | None = None,
    speaker: int | None = None,
) -> Speaker:
    """A loaded model with the extractor and, where there is one, the vocoder of a speech folder.

    Args:
        device: where extractor and vocoder run.
        language, speaker: who speaks, for vocoders that have several; None is the vocoder's own choice.

    Raises:
        DataError: the folder's units are not those of the model, or its vocoder has no such voice.
    """
    if speech is None:
        if language is not None or speaker is not None:
            raise DataError("a voice was chosen, and there is no vocoder", where="--speech", mend="give its folder")
        return Speaker(loaded)
    from slm.speech.load import has_vocoder, load_extractor, load_vocoder

    extractor, units = load_extractor(speech, device)
    chosen = language is not None or speaker is not None
    speaks = chosen or has_vocoder(speech)
    vocoder = load_vocoder(speech, device, language=language, speaker=speaker) if speaks else None
    if loaded.vocabulary.units != units:
        raise DataError(
            "the model was trained on other speech units, or on none", where=str(speech),
            mend="give the speech folder of the data that the model was trained on",
        )  # fmt: skip
    return Speaker(loaded, extractor, vocoder)


def find_speech(model: str | Path, units: UnitSet | None) -> Path | None:
    """The speech folder of a model's units beside it: a run's `data/speech` or `speech`; None where there is none.

    Args:
        model: step, checkpoint, adapter or Hugging Face folder.
        units: of the model; a folder of other units is passed over.
    """
    import json

    from slm.speech.load import SPEECH_FILE

    if units is None:
        return None
    folder = Path(model).absolute()
    for above in (folder, *list(folder.parents)[:4]):
        for place in (above / "speech", above / "data" / "speech"):
            try:
                about = json.loads((place / SPEECH_FILE).read_text())
            except (OSError, ValueError):
                continue
            if about.get("units") == vars(units):
                return place
    return None
