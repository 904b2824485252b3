"""What is spoken in the tiny world, by whom, and which data set uses it.

The plan is a pure function of the configuration and the seed. Inputs of tests are drawn first; a
training input never has the (text, voice, rate, pitch) of one of them, held-out voices never train,
and the answer speaker speaks no input at all. Each utterance is synthesised once, however many sets
use it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

from slm.artifact import write_atomic
from slm.config.tiny import TinyCorpusConfig, TinyTextsConfig
from slm.errors import ConfigError, DataError
from slm.tiny import world
from slm.tiny.synthesis import Request, synthesise
from slm.tokens.alignment import Word

UTTERANCES_FILE = "utterances.jsonl"
Speaker = tuple[str, int, int]


@dataclass
class Utterance:
    """One recording. `kind` is question, statement, answer or random; `split` is train, test or new_voices."""

    id: str
    split: str
    kind: str
    request: Request
    uses: list[str] = field(default_factory=list)

    @property
    def audio(self) -> str:
        """Its file, relative to the corpus folder."""
        return f"wav/{self.id}.wav"


@dataclass(frozen=True)
class SpokenQuestion:
    """A question, someone asking it, and the answer speaker answering."""

    question: world.Question
    asked: Utterance
    answered: Utterance


@dataclass(frozen=True)
class Plan:
    """Every utterance and, by data set, which of them it uses (in order, repeats possible)."""

    questions: list[world.Question]
    utterances: list[Utterance]
    spoken: dict[str, list[Utterance]]
    """`asr`, `tts` for training; `test_asr`, `test_asr_random`, `test_tts`."""
    asked: dict[str, list[SpokenQuestion]]
    """`sqa` for training; `test_sqa`, `test_sqa_new_voices`."""


class _Draft:
    """Collects utterances; hands out speakers so that train and test stay apart."""

    def __init__(self, config: TinyCorpusConfig, seed: int) -> None:
        self.chance = random.Random(f"tiny corpus {seed}")
        self.answerer: Speaker = config.answer_speaker.key
        self.known = [s for s in product(config.voices, config.rates, config.pitches) if s != self.answerer]
        self.new = [s for s in product(config.held_out_voices, config.rates, config.pitches) if s != self.answerer]
        self.utterances: dict[Request, Utterance] = {}
        self._given: dict[tuple[str, str], set[Speaker]] = {}

    def add(self, request: Request, split: str, kind: str, use: str) -> Utterance:
        if request not in self.utterances:
            self.utterances[request] = Utterance(f"u{len(self.utterances):06d}", split, kind, request)
        found = self.utterances[request]
        if use not in found.uses:
            found.uses.append(use)
        return found

    def draw(self, text: str, split: str, kind: str, use: str, *, reuse: bool = False) -> Utterance:
        """The text by a speaker who has not spoken it for this use, nor for another split.

        With `reuse`, recordings that another use has made already come first.
        """
        pool = self.new if split == "new_voices" else self.known
        given = self._given.setdefault((use, text), set())
        made = {speaker: self.utterances.get(Request(text, *speaker)) for speaker in pool if speaker not in given}
        free = [speaker for speaker, other in made.items() if other is None or other.split == split]
        if not free:
            raise ConfigError(
                f"all {len(pool)} speakers have said {text!r} for {use!r} already",
                where="corpus",
                mend="give more voices, rates or pitches, or ask for fewer utterances",
            )
        recorded = [speaker for speaker in free if made[speaker] is not None]
        speaker = self.chance.choice(recorded if reuse and recorded else free)
        given.add(speaker)
        return self.add(Request(text, *speaker), split, kind, use)

    def answer(self, text: str, split: str, kind: str, use: str) -> Utterance:
        """The text by the answer speaker."""
        return self.add(Request(text, *self.answerer), split, kind, use)


def world_questions(count: int | None) -> list[world.Question]:
    """The world's questions, all or the first `count` with topics taking turns."""
    by_topic: dict[str, list[world.Question]] = {}
    for question in world.questions():
        by_topic.setdefault(question.topic, []).append(question)
    turns = [question for row in zip_longest(*by_topic.values()) for question in row if question]
    return turns if count is None else turns[:count]


def plan(config: TinyCorpusConfig, seed: int) -> Plan:
    """Decide every utterance.

    Raises:
        ConfigError: a text is wanted more often than there are speakers.
    """
    draft = _Draft(config, seed)
    questions = world_questions(config.questions)
    tested = questions[: config.test_questions]
    own = [world.Sentence(q.text, "question") for q in questions]
    own += [world.Sentence(q.sentence, "statement") for q in questions]
    strings = world.random_strings(config.test_asr_random, seed + 1)
    # A sentence that SQA speaks as its answer would be no unseen TTS text.
    unspoken = [s for s in own if config.spoken_answer == "answer" or s.kind == "question"]
    held_out = draft.chance.sample(unspoken, min(config.test_tts, len(unspoken) // 2))

    def draw(texts: Iterable[world.Sentence], split: str, use: str) -> list[Utterance]:
        return [draft.draw(text.text, split, text.kind, use) for text in texts]

    def answer(texts: Iterable[world.Sentence], split: str, use: str) -> list[Utterance]:
        return [draft.answer(text.text, split, text.kind, use) for text in texts]

    def ask(asked: Iterable[world.Question], split: str, use: str) -> list[SpokenQuestion]:
        found = []
        for q in asked:
            question = draft.draw(q.text, split, "question", use, reuse=split == "train")
            bare = config.spoken_answer == "answer"
            text = world.Sentence(q.answer, "answer") if bare else world.Sentence(q.sentence, "statement")
            found.append(SpokenQuestion(q, question, answer([text], "train", "sqa_answer")[0]))
        return found

    spoken = {
        "test_asr": draw(_turns(own, config.test_asr, draft.chance), "test", "test_asr"),
        "test_asr_random": draw([world.Sentence(s, "random") for s in strings], "test", "test_asr_random"),
    }
    asked = {
        "test_sqa": ask(tested, "test", "test_sqa"),
        "test_sqa_new_voices": ask(tested, "new_voices", "test_sqa_new_voices"),
    }
    spoken["asr"] = draw(_sentences(config.asr, seed, exclude=strings), "train", "asr")
    asked["sqa"] = ask([q for q in questions for _ in range(config.sqa_variants)], "train", "sqa")
    said = _said(config.tts, seed + 2, strings, {s.text for s in held_out})
    spoken["tts"] = answer(said, "train", "tts")
    spoken["test_tts"] = answer(held_out, "test", "test_tts")
    return Plan(questions, list(draft.utterances.values()), spoken, asked)


def _said(texts: TinyTextsConfig, seed: int, strings: Iterable[str], held_out: set[str]) -> list[world.Sentence]:
    """TTS texts without the held-out ones: twice as many are drawn, and as many kept as are asked for."""
    drawn = _sentences(texts.model_copy(update={"count": 2 * texts.count}), seed, strings)
    return [s for s in drawn if s.text not in held_out][: texts.count]


def _sentences(texts: TinyTextsConfig, seed: int, exclude: Iterable[str]) -> list[world.Sentence]:
    return world.sentences(
        texts.count,
        seed=seed,
        questions_share=texts.questions,
        statements_share=texts.statements,
        answers_share=texts.answers,
        exclude=exclude,
    )


def _turns(texts: Sequence[world.Sentence], count: int, chance: random.Random) -> list[world.Sentence]:
    """`count` texts in random order, none a second time before all had their turn."""
    found: list[world.Sentence] = []
    while len(found) < count and texts:
        found += chance.sample(texts, min(count - len(found), len(texts)))
    return found


def record(
    plan: Plan, folder: str | Path, *, workers: int, on_done: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Synthesise every utterance into `folder/wav/` and write `utterances.jsonl`.

    Returns:
        Counts for the manifest: utterances, hours, seconds by split.

    Raises:
        MachineError, DataError: see `synthesise`.
    """
    folder = Path(folder)
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    jobs = [(utterance.request, folder / utterance.audio) for utterance in plan.utterances]
    results = synthesise(jobs, workers=workers, on_done=on_done)
    lines, seconds = [], dict.fromkeys(("train", "test", "new_voices"), 0.0)
    for utterance, spoken in zip(plan.utterances, results, strict=True):
        row = {
            "id": utterance.id,
            "split": utterance.split,
            "kind": utterance.kind,
            "uses": utterance.uses,
            **vars(utterance.request),
            "audio": utterance.audio,
            "seconds": spoken.seconds,
            "words": [vars(word) for word in spoken.words],
        }
        lines.append(json.dumps(row))
        seconds[utterance.split] += spoken.seconds
    write_atomic(folder / UTTERANCES_FILE, "\n".join(lines) + "\n")
    hours = round(sum(seconds.values()) / 3600, 3)
    return {"utterances": len(lines), "hours": hours, "seconds": {k: round(v, 1) for k, v in seconds.items()}}


def read_words(folder: str | Path) -> dict[str, tuple[Word, ...]]:
    """Word times of every utterance of a corpus folder, by id.

    Raises:
        DataError: no corpus there.
    """
    return {
        row["id"]: tuple(Word(**word) for word in row["words"]) for row in read_rows(Path(folder) / UTTERANCES_FILE)
    }


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        DataError: missing, or a line that is no JSON object.
    """
    rows: list[dict[str, Any]] = []
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise DataError("file not found", where=str(path)) from None
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"not JSON: {error}", where=f"{path}:{number}") from None
        if not isinstance(row, Mapping):
            raise DataError("not a JSON object", where=f"{path}:{number}")
        rows.append(dict(row))
    return rows


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as JSONL, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
