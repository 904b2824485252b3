"""The tiny data artifact, step by step; a step that is done already is not done again.

`<out>/corpus` (recordings) → `speech` (codebook) → `units` → `tokenizer` → `shards/{llm,asr,tts,sqa}`
→ `eval/*.jsonl`. Each is an artifact with a manifest of its own; the outer manifest comes last.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from slm.artifact import MANIFEST, building, find_manifest, is_current, read_manifest, write_manifest
from slm.config.tiny import TinyDataJob
from slm.speech.audio import read_audio
from slm.stages import RECIPES
from slm.tiny import world
from slm.tiny.corpus import Plan, plan, read_rows, read_words, record, write_rows
from slm.tiny.examples import Speech, llm_rows, speech_rows, test_sets
from slm.tiny.labels import word_labels

log = logging.getLogger(__name__)

UNITS_FILE = "units.jsonl"
SPEECH_SETS = ("asr", "tts", "sqa")
PROGRESS_EVERY_S = 5.0


class TinyDataBuild:
    """One build; attributes that are dear to have are made when first asked for."""

    def __init__(self, job: TinyDataJob) -> None:
        self.job = job
        self.out = Path(job.out)
        self.identity = job.identity()
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """Make every sub-artifact that is missing or stale, then the outer manifest."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / MANIFEST).unlink(missing_ok=True)
        seed = {"seed": self.job.seed}
        corpus = {"corpus": self.identity["corpus"], **seed}
        self._part("corpus", "tiny-corpus", corpus, (), self._corpus)
        self._part("speech", "speech", {"speech": self.identity["speech"]}, ("corpus",), self._speech)
        self._part("units", "units", {}, ("corpus", "speech"), self._units)
        self._part(
            "tokenizer", "tokenizer", {"tokenizer": self.identity["tokenizer"], **seed}, ("speech",), self._tokenizer
        )
        self._shards("llm", corpus, ("tokenizer",))
        for name in SPEECH_SETS:
            self._shards(name, corpus, ("corpus", "units", "tokenizer"))
        self._part("eval", "test-sets", corpus, ("corpus", "units", "speech"), self._test_sets)
        self._seal()

    @cached_property
    def plan(self) -> Plan:
        return plan(self.job.corpus, self.job.seed)

    @cached_property
    def speech(self) -> Speech:
        from slm.speech import load_speech

        words = read_words(self.out / "corpus")
        units = {row["id"]: row["units"] for row in read_rows(self.out / "units" / UNITS_FILE)}
        return Speech(words, units, load_speech(self.out / "speech")[2])

    def _part(
        self, name: str, kind: str, config: Mapping[str, Any], needs: tuple[str, ...],
        make: Callable[[Path], Mapping[str, Any]],
    ) -> None:  # fmt: skip
        """Make one sub-artifact by `make(folder) -> about`, unless it is up to date."""
        folder = self.out / name
        inputs = {need: read_manifest(self.out / need).fingerprint for need in needs}
        current, why = is_current(folder, kind, config, inputs)
        if current:
            log.info("%s: up to date", name)
            return
        started = time.monotonic()
        log.info("%s: making it (%s)", name, why)
        with building(folder) as scratch:
            about = make(scratch)
            write_manifest(scratch, kind, config=config, inputs=inputs, about=about)
        self._took(name, started, about)

    def _took(self, name: str, started: float, about: Mapping[str, Any]) -> None:
        self.seconds[name] = round(time.monotonic() - started, 2)
        facts = ", ".join(f"{key} {value}" for key, value in about.items() if isinstance(value, int | float | str))
        log.info("%s: done in %.1f s%s", name, self.seconds[name], f" ({facts})" if facts else "")

    def _corpus(self, folder: Path) -> Mapping[str, Any]:
        total, last = len(self.plan.utterances), time.monotonic()

        def progress(done: int) -> None:
            nonlocal last
            if time.monotonic() - last > PROGRESS_EVERY_S:
                last = time.monotonic()
                log.info("corpus: %d of %d utterances (%d %%)", done, total, 100 * done // total)

        return record(self.plan, folder, workers=self.job.workers or os.cpu_count() or 1, on_done=progress)

    def _waves(self, ids: list[str]) -> list[Any]:
        return [read_audio(self.out / "corpus" / "wav" / f"{name}.wav")[0] for name in ids]

    def _speech(self, folder: Path) -> Mapping[str, Any]:
        from slm.speech.mel_kmeans import MelKMeans

        train = [utterance for utterance in self.plan.utterances if utterance.split == "train"]
        said = [utterance.id for utterance in train if utterance.request.speaker == self.job.corpus.answer_speaker.key]
        waves, labels = self._waves([utterance.id for utterance in train]), None
        if self.job.speech.discriminants:
            words = read_words(self.out / "corpus")
            labels = word_labels([words[utterance.id] for utterance in train], waves, self.job.speech.hop)
        codebook = MelKMeans.fit(waves, self.job.speech, voice=self._waves(said), labels=labels)
        codebook.save(folder)
        return {"units": codebook.count, "rate_hz": codebook.rate_hz, "codebook": codebook.identity}

    def _units(self, folder: Path) -> Mapping[str, Any]:
        from slm.speech import load_speech

        extractor = load_speech(self.out / "speech")[0]
        ids = [utterance.id for utterance in self.plan.utterances]
        found = extractor.units(self._waves(ids))
        rows = [{"id": name, "units": units.tolist()} for name, units in zip(ids, found, strict=True)]
        write_rows(folder / UNITS_FILE, rows)
        return {"units": int(sum(len(units) for units in found))}

    def _tokenizer(self, folder: Path) -> Mapping[str, Any]:
        from slm.speech import load_speech
        from slm.tiny.tokenizer import train_tokenizer
        from slm.tokens.vocabulary import add_units, save_tokenizer

        tokenizer = train_tokenizer(world.corpus_text(self.job.seed), self.job.tokenizer)
        vocabulary = add_units(tokenizer, load_speech(self.out / "speech")[2])
        save_tokenizer(folder, tokenizer, vocabulary)
        return {"text_tokens": vocabulary.text_size, "tokens": vocabulary.size, "vocabulary": vocabulary.to_json()}

    def _shards(self, name: str, corpus: Mapping[str, Any], needs: tuple[str, ...]) -> None:
        """One training set, written by the data room."""
        from slm.data.build import build_shards
        from slm.tokens.vocabulary import load_tokenizer, text_vocabulary, without_units

        folder, settings = self.out / "shards" / name, self.identity["shards"]
        config = {"recipe": name, **corpus, "shards": settings}
        inputs = {need: read_manifest(self.out / need).fingerprint for need in needs}
        current, why = is_current(folder, "shards", config, inputs)
        if current:
            log.info("shards/%s: up to date", name)
            return
        started = time.monotonic()
        log.info("shards/%s: making it (%s)", name, why)
        tokenizer, vocabulary = load_tokenizer(self.out / "tokenizer")
        if name == "llm":
            # Text alone, so that the base trains on it before it has any units.
            tokenizer = without_units(tokenizer)
            vocabulary = text_vocabulary(tokenizer)
            rows = llm_rows(self.plan.questions, self.job.corpus, self.job.seed)
        else:
            rows = speech_rows(name, self.plan, self.speech)
        manifest = build_shards(
            rows, recipe=RECIPES[name], tokenizer=tokenizer, vocabulary=vocabulary, out=folder, config=config,
            inputs=inputs, max_length=settings["max_length"], group_size=settings["group_size"],
        )  # fmt: skip
        self._took(f"shards/{name}", started, {key: manifest.about[key] for key in ("dropped", "longest")})

    def _test_sets(self, folder: Path) -> Mapping[str, Any]:
        sets = test_sets(self.plan, self.speech, self.job.corpus, self.job.seed)
        for name, items in sets.items():
            write_rows(folder / f"{name}.jsonl", items)
        return {name: len(items) for name, items in sets.items()}

    def _seal(self) -> None:
        """The outer manifest: the files of all parts, hashed once already."""
        files, facts = {}, {}
        for name in ("corpus", "speech", "units", "tokenizer", *(f"shards/{s}" for s in ("llm", *SPEECH_SETS)), "eval"):
            part = read_manifest(self.out / name)
            files.update({f"{name}/{path}": entry for path, entry in part.files.items()})
            facts[name] = {key: value for key, value in part.about.items() if isinstance(value, int | float | str)}
        about = {"parts": facts, "seconds": self.seconds, "job": self.job.model_dump(mode="json")}
        write_manifest(self.out, self.job.kind, config=self.identity, files=files, about=about, format=self.job.format)


def build_tiny(job: TinyDataJob) -> bool:
    """Build the tiny data artifact `job.out`.

    Returns:
        False when it was up to date already.

    Raises:
        MachineError: espeak-ng is missing, or the disk is full.
        DataError, ConfigError: a voice that does not exist, too few speakers for what is asked.
    """
    current, why = is_current(job.out, job.kind, job.identity(), {}, format=job.format)
    if current:
        log.info("%s: up to date", job.out)
        return False
    started = time.monotonic()
    stale = "" if find_manifest(job.out) is None else f" ({why})"
    log.info("building the tiny world's data in %s%s", job.out, stale)
    TinyDataBuild(job).run()
    log.info("%s: complete in %.1f s", job.out, time.monotonic() - started)
    return True
