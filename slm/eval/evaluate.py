"""One model on every evaluation set: the artifact `<model>/eval`.

`<set>/items.jsonl` holds a record an item, `<set>/results.json` the figures with their intervals,
`samples/*.wav` what the first speaking items sound like. A set the model can't do (speech without unit
rows) has results that say so; it is missing, not 0.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.artifact import Manifest, building, write_atomic, write_json, write_manifest
from slm.config.evaluation import EvalJob, TaskOptions
from slm.device import best_device
from slm.errors import DataError
from slm.eval.metrics import normaliser_name
from slm.eval.sets import Item, choose, read_set, set_path
from slm.eval.statistics import interval, ratio_of_sums, resampled, resamples
from slm.eval.tasks import scorer
from slm.eval.tasks.task import Scored, Scorer
from slm.eval.tasks.tts import Tts
from slm.eval.voice import Voice, load_voice
from slm.generation.generate import generate
from slm.generation.output import Output, split_output
from slm.stages import RECIPES
from slm.tokens.chat import Turn, end_of_answer, render_many, render_prompts

if TYPE_CHECKING:
    from slm.model.load import Loaded

KIND = "evaluation"
ITEMS, RESULTS, SAMPLES = "items.jsonl", "results.json", "samples"
UNKNOWN_LENGTH = 256
"""Longest answer where a set holds no right answers to measure."""
Load = Callable[..., "Loaded"]
"""Called as `load(ref, device=…, dtype=…)`; one that worker processes find by its name."""
Report = Callable[[str, str], None]
"""Called with the name of a finished set and its headline figure in words."""


def evaluation_folder(ref: str | Path) -> Path:
    """Where a model's evaluation lies."""
    return Path(ref) / "eval"


def evaluate_model(ref: str, job: EvalJob, inputs: Mapping[str, str], report: Report, load: Load) -> Manifest:
    """Evaluate one model on every set of the job.

    Args:
        ref: what `load` takes.
        inputs: fingerprints for the manifest, {"model": …, "data": …}.
        report: told of every finished set.
        load: loads the model.

    Raises:
        DataError: a set is missing or damaged, or the model's units are not those of the data.
        CheckpointError: the model can't be loaded.
    """
    import torch

    started = time.monotonic()
    device = best_device().type
    loaded = load(ref, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    voice = load_voice(str(Path(job.data).resolve()))
    _check_units(loaded, voice, ref)
    seconds = {"load": time.monotonic() - started}
    with building(evaluation_folder(ref)) as folder:
        for name, options in job.tasks.items():
            began = time.monotonic()
            headline = _Run(name, options, loaded, voice, job, folder).run()
            seconds[name] = time.monotonic() - began
            report(name, headline)
        about = {
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "device": device,
            "model": ref,
            "data": job.data,
        }
        return write_manifest(folder, KIND, config=job.model_identity(), inputs=inputs, about=about)


def _check_units(loaded: Loaded, voice: Voice | None, ref: str) -> None:
    units = loaded.vocabulary.units
    if units is not None and voice is not None and units != voice.units:
        raise DataError(
            "the model was trained on other speech units than the data holds",
            where=ref,
            mend="evaluate on data made with the model's own extractor and codebook",
        )


@dataclass
class _Run:
    """One set on one model."""

    name: str
    options: TaskOptions
    loaded: Loaded
    voice: Voice | None
    job: EvalJob
    folder: Path

    def run(self) -> str:
        rules = _rules(self.name, self.options)
        (self.folder / self.name).mkdir()
        if rules.speech and self.loaded.vocabulary.units is None:
            reason = "the model has no speech units"
            write_json(self.folder / self.name / RESULTS, {"task": self.name, "score": None, "missing": reason})
            return "n/a"
        items = choose(read_set(set_path(self.job.data, self.name)), self.options.limit, self.job.seed)
        prompts = [RECIPES[item.stage].prompt(item.example) for item in items]
        limit = self.options.max_new_tokens or self._longest(items)
        outputs = self._answers(prompts, limit)
        scored = rules.score(items, outputs, self.voice)
        audio = self._voiced(rules, items, outputs)
        records = [
            _record(self.name, item, prompt, output, one, heard)
            for item, prompt, output, one, heard in zip(items, prompts, outputs, scored, audio, strict=True)
        ]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_atomic(self.folder / self.name / ITEMS, lines)
        results = self._results(rules, scored, limit)
        write_json(self.folder / self.name / RESULTS, results)
        return f"{rules.headline.split('@')[0]} {results['metrics'][rules.headline]['value']:.3f}"

    def _longest(self, items: Sequence[Item]) -> int:
        """A quarter more tokens than the longest right answer, so a model that never ends costs little."""
        try:
            turns = [Turn("", RECIPES[item.stage].answer(item.example)) for item in items]
        except DataError:
            return UNKNOWN_LENGTH
        lengths = (sum(rendered.supervised) for rendered in render_many(self.loaded.tokenizer, turns))
        return math.ceil(1.25 * max(lengths)) + 4

    def _answers(self, prompts: Sequence[str], limit: int) -> list[Output]:
        tokenizer = self.loaded.tokenizer
        stop = {end_of_answer(tokenizer)} | ({tokenizer.eos_token_id} - {None})
        generated = generate(
            self.loaded.model,
            render_prompts(tokenizer, prompts),
            stop=stop,
            max_new_tokens=limit,
            batch_size=self.job.batch_size,
            size=self.loaded.vocabulary.size,
        )
        return [split_output(tokenizer, one, self.loaded.vocabulary) for one in generated]

    def _voiced(self, rules: Scorer, items: Sequence[Item], outputs: Sequence[Output]) -> list[dict[str, str | None]]:
        """Where each item's audio lies; the first spoken answers are written as WAV files."""
        from slm.speech.audio import write_audio

        found = []
        left = self.job.samples if rules.speech else 0
        for item, output in zip(items, outputs, strict=True):
            heard = {"question": item.audio, "reference": item.reference_audio, "generated": None}
            units = rules.spoken(output)
            if units and self.voice is not None and left:
                left -= 1
                path = Path(SAMPLES) / f"{self.name}-{re.sub(r'[^A-Za-z0-9_-]', '_', item.id)}.wav"
                (self.folder / SAMPLES).mkdir(exist_ok=True)
                write_audio(self.folder / path, self.voice.wave(units))
                heard["generated"] = str(path)
            found.append(heard)
        return found

    def _results(self, rules: Scorer, scored: Sequence[Scored], limit: int) -> dict[str, Any]:
        """Figures of the set; a metric that only some items have counts those items alone."""
        draws = resamples(len(scored), self.job.bootstrap, self.job.seed)
        metrics: dict[str, dict[str, Any]] = {}
        for metric in dict.fromkeys(name for one in scored for name in one.ratios):
            pairs = [one.ratios.get(metric, (0.0, 0.0)) for one in scored]
            values, weights = [float(v) for v, _ in pairs], [float(w) for _, w in pairs]
            value = float(ratio_of_sums(np.array(values), np.array(weights)))
            metrics[metric] = {
                "value": None if math.isnan(value) else value,
                "ci": interval(resampled(values, weights, draws)),
                "n": sum(metric in one.ratios for one in scored),
                "less_is_better": metric in rules.errors,
            }
        flags = [flag for one in scored for flag in one.flags]
        return {
            "task": self.name,
            "scorer": self.options.scorer or self.name,
            "stage": rules.stage,
            "n": len(scored),
            "headline": rules.headline,
            "score": score_of(metrics[rules.headline]["value"], rules.headline in rules.errors),
            "metrics": metrics,
            "flags": {flag: flags.count(flag) for flag in sorted(set(flags))},
            "decoding": {"greedy": True, "max_new_tokens": limit},
            "normaliser": normaliser_name(),
        }


def score_of(raw: float | None, is_error: bool) -> float | None:
    """A figure as a score: 0 to 1, higher is better; an error rate above 1 is a score of 0."""
    if raw is None:
        return None
    return 1.0 - min(raw, 1.0) if is_error else raw


def _rules(name: str, options: TaskOptions) -> Scorer:
    kind = options.scorer or name
    return Tts(options.resynthesise) if kind == "tts" else scorer(kind)


def _record(
    task: str, item: Item, prompt: str, output: Output, scored: Scored, audio: Mapping[str, str | None]
) -> dict[str, Any]:
    """One line of items.jsonl; audio of question and reference is relative to the data folder, of the
    generated answer to the evaluation's."""
    return {
        "id": item.id,
        "task": task,
        "prompt": prompt,
        "target": dict(item.target),
        "output": output.raw,
        "text": output.text,
        "scores": {
            name: (ratio.value / ratio.weight if ratio.weight else None) for name, ratio in scored.ratios.items()
        },
        "counts": {name: list(ratio) for name, ratio in scored.ratios.items()},
        "flags": scored.flags,
        "tags": list(item.tags),
        "audio": dict(audio),
    }
