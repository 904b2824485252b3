"""Small local copies of the published sets, with exactly their columns, and a tokenizer with all 10,000 units."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from support import SENTENCES, make_text_tokenizer

from slm.artifact import file_sha256
from slm.config.jobs import load_data_job
from slm.speech.xlsr import XlsrKMeans
from slm.tokens.vocabulary import UnitSet, add_units, remove_repeats, save_tokenizer, units_to_text

JOBS = Path(__file__).parents[1] / "data_shards" / "jobs"
UNITS = UnitSet(10_000, 50.0, XlsrKMeans.name, "a5" * 32)  # what a converted XLS-R calls its units
ASR_INSTRUCTIONS = ["Repeat after me: ", "Echo these words.", "Say again what you hear."]
CATEGORIES = ["Information seeking", "Math", "Advice seeking", "Coding & Debugging", "Data analysis"]


def save_units_tokenizer(folder: Path, units: UnitSet | None = UNITS) -> Path:
    """A pico tokenizer with the published sets' units, or with none."""
    tokenizer = make_text_tokenizer()
    if units is None:
        folder.mkdir(parents=True)
        tokenizer.save_pretrained(str(folder))
        return folder
    save_tokenizer(folder, tokenizer, add_units(tokenizer, units))
    return folder


def raw_units(chance: random.Random, count: int, different: int = UNITS.count) -> list[int]:
    """Units with repeats."""
    found: list[int] = []
    while len(found) < count:
        found += [chance.randrange(different)] * chance.randint(1, 3)
    return found[:count]


def woven(chance: random.Random, text: str, different: int = UNITS.count) -> str:
    """Every word, then its units, repeats removed."""
    return " ".join(word + units_to_text(remove_repeats(raw_units(chance, 6, different))) for word in text.split())


def ls960_rows(count: int, different: int = UNITS.count) -> list[dict]:
    """Rows of `ls960_interleaves`, of so many different units."""
    chance, rows = random.Random(5), []
    for i in range(count):
        text = f"{SENTENCES[i % len(SENTENCES)]} {i}"
        rows.append(
            {
                "instruction": ASR_INSTRUCTIONS[i % len(ASR_INSTRUCTIONS)],
                "discrete_unit": raw_units(chance, 30 + i % 7, different),
                "transcription": text,
                "interleaf": woven(chance, text, different),
            }
        )
    return rows


def magpie_rows(count: int, chunk: int) -> list[dict]:
    """Rows of a `Magpie_rank{r}_chunk{c}_interleaves`, audio columns left to `save_magpie`."""
    chance, rows = random.Random(chunk), []
    for i in range(count):
        question, answer = f"what is {chunk} and {i}", f"it is {chunk} {i}"
        rows.append(
            {
                "input": question,
                "input_unit": raw_units(chance, 20),
                "input_pseudo": question,
                "output_pseudo": answer,
                "output_7306_interleaf": woven(chance, answer),
                "task_category": CATEGORIES[i % len(CATEGORIES)],
            }
        )
    return rows


def save_magpie(folder: Path, rows: list[dict]) -> Path:
    """As a folder of two Parquet files, with the audio columns that are to be dropped."""
    import pyarrow
    import soundfile
    from datasets import Audio, Dataset, Features, List, Value

    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(160), 16_000, format="WAV")
    audio = ["input_speech", "output_speech", "output_speech_cmu-arctic-xvectors_7306"]
    text = {name: Value("string") for name in rows[0] if name != "input_unit"}
    features = Features({**text, "input_unit": List(Value("int64")), **{name: Audio(16_000) for name in audio}})
    silence = {name: {"bytes": sound.getvalue(), "path": None} for name in audio}
    table = pyarrow.Table.from_pylist([row | silence for row in rows])
    loaded = Dataset(table.select(list(features)).cast(features.arrow_schema))
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(card(text, audio, len(rows)))
    half = len(rows) // 2
    for number, part in enumerate((loaded.select(range(half)), loaded.select(range(half, len(rows))))):
        part.to_parquet(str(folder / "data" / f"train-{number:05d}-of-00002.parquet"))
    return folder


def card(text: Iterable[str], audio: Iterable[str], count: int) -> str:
    """The head of a README as `push_to_hub` writes it."""
    features = [f"  - name: {name}\n    dtype: string" for name in text]
    features += ["  - name: input_unit\n    list: int64"]
    features += [f"  - name: {name}\n    dtype:\n      audio:\n        sampling_rate: 16000" for name in audio]
    splits = f"  splits:\n  - name: train\n    num_bytes: 123456\n    num_examples: {count}"
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*"
    return "\n".join(["---", "dataset_info:", "  features:", *features, splits, configs, "---", ""])


def samples_of(folder: str | Path):
    """(ids, mask) of every sample of a set, in order; the set is whole."""
    from slm.data.reader import ShardSet

    shards = ShardSet(folder)
    assert shards.check() == []
    for number in range(shards.groups):
        group = shards.read_group(number)
        cuts = np.cumsum(group.lengths)[:-1]
        yield from zip(np.split(group.ids, cuts), np.split(group.mask, cuts), strict=True)


def hashes(folder: str | Path) -> dict[str, str]:
    """Name -> sha256 of every shard and index."""
    return {path.name: file_sha256(path) for path in sorted(Path(folder).glob("shard-*"))}


def shipped(name: str, folder: Path, tokenizer: Path, *changes: str):
    """A shipped job that builds `folder/name`."""
    pairs = [f"out={folder / name}", f"tokenizer={tokenizer}", "workers=1", *changes]
    return load_data_job(str(JOBS / f"{name}.yaml"), pairs)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
