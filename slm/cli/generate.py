"""`slm generate`: questions to a model, in text or as sound; the answers in text, and spoken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli.common import need
from slm.errors import ConfigError

if TYPE_CHECKING:
    from slm.config.generation import Asking, GenerateJob
    from slm.generation.answers import Answer, Speaker

USAGE = (
    "slm generate STEP (--text QUESTION | --audio FILE | --audio FOLDER --out SET | --data SET --out SET) [options]\n"
    "STEP is a step, a checkpoint, an adapter, or a model folder"
)


def generate(
    model: Annotated[str | None, typer.Argument(metavar="STEP", show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="A question in writing.")] = None,
    audio: Annotated[str | None, typer.Option(help="A spoken question, or a folder of them (with --out).")] = None,
    data: Annotated[str | None, typer.Option(help="Data set of questions: file, folder, or name on the Hub.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the data set of answers.")] = None,
    wav: Annotated[str, typer.Option(help="Where one spoken answer goes.")] = "answer.wav",
    as_json: Annotated[bool, typer.Option("--json", help="Print one answer as JSON.")] = False,
    task: Annotated[str | None, typer.Option(help="llm, asr, tts or sqa; default: sqa for speech, else llm.")] = None,
    instruction: Annotated[str, typer.Option(help="Wording of asr and tts prompts.")] = "",
    speech: Annotated[str | None, typer.Option(help="Folder of extractor and vocoder; default: the run's own.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of a vocoder that has several.")] = None,
    speaker: Annotated[int | None, typer.Option(help="Speaker of a vocoder that has several.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of probability that is sampled from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    constrained: Annotated[bool, typer.Option("--constrained", help="Well-formed answers only.")] = False,
    lora_scale: Annotated[float, typer.Option(help="Factor on the adapter's scale.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Configuration of the data set.")] = None,
    split: Annotated[str, typer.Option(help="Part of the data set.")] = "train",
    column: Annotated[str | None, typer.Option(help="Column with the questions.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many questions.")] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Publish the answers; HF_TOKEN in the environment.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="For all to see.")] = False,
) -> None:
    """Ask a model: text or sound in; text, and speech when it answers in units, out."""
    folder = need(model, USAGE, "runs/*/*/MANIFEST.json")
    if sum(given is not None for given in (text, audio, data)) != 1:
        raise ConfigError("give --text, --audio or --data, one of them", mend=f"usage: {USAGE}")
    from slm.config.generation import Asking, GenerateJob
    from slm.config.loader import from_mapping
    from slm.log import setup_logging

    asking: dict[str, Any] = {
        **{"model": folder, "speech": speech, "task": task, "instruction": instruction, "seed": seed},
        **{"max_new_tokens": max_new_tokens, "batch_size": batch_size, "temperature": temperature, "top_p": top_p},
        **{"constrained": constrained, "lora_scale": lora_scale, "device": device},
        **{"language": language, "speaker": speaker},
    }
    setup_logging()
    if data is None and (audio is None or not Path(audio).is_dir()):
        if out is not None or push_to_hub is not None:
            raise ConfigError("--out and --push-to-hub are for many questions", mend="give a folder, or --data")
        ask(from_mapping(Asking, asking, "command line"), text, audio, wav, as_json=as_json)
        return
    if out is None:
        raise ConfigError("many questions need a place for their answers", mend="--out FOLDER")
    many = {"out": out, "audio": audio, "data": data, "name": name, "split": split, "column": column, "limit": limit}
    many |= {"push_to_hub": push_to_hub, "public": public}
    ask_all(from_mapping(GenerateJob, asking | many, "command line"))


def open_speaker(asking: Asking) -> Speaker:
    """The model that a command names, with the extractor and vocoder of its units if they can be found.

    Raises:
        CheckpointError: no model there, or one that can't be loaded.
        DataError: a speech folder of other units.
        MachineError: no such device.
    """
    import torch

    from slm.engine.load import load_any
    from slm.generation import answers
    from slm.speech.xlsr_network import find_device

    device = str(find_device(asking.device))
    dtype = torch.float32 if device.startswith("cpu") else torch.bfloat16
    loaded = load_any(asking.model, device=device, dtype=dtype, lora_scale=asking.lora_scale)
    speech = asking.speech or answers.find_speech(asking.model, loaded.vocabulary.units)
    return answers.open_speaker(loaded, speech, device=asking.device, language=asking.language, speaker=asking.speaker)


def fingerprint_of(model: str) -> str:
    """What tells a model from another, without loading it.

    Raises:
        CheckpointError: no model there.
    """
    from slm.artifact import read_manifest
    from slm.engine.checkpoint_model import is_checkpoint
    from slm.model.reference import resolve

    return read_manifest(model).fingerprint if is_checkpoint(model) else resolve(model).fingerprint


def ask(asking: Asking, text: str | None, audio: str | None, wav: str, *, as_json: bool) -> None:
    """Ask one question and print the answer; a spoken one also becomes the file `wav`.

    Raises:
        ConfigError: the task takes the other kind of question.
        DataError: not audio, too long, or not in the model's units.
    """
    from slm.generation.answers import Refused
    from slm.generation.dataset import decoding_of
    from slm.generation.questions import Question, task_of
    from slm.speech.audio import read_question, write_audio

    task = task_of(asking.task, heard=audio is not None)
    wave = read_question(audio) if audio is not None else None
    speaker = open_speaker(asking)
    units = speaker.hear([wave])[0] if wave is not None else []
    question = Question(audio or "--text", text=text or "", units=units, instruction=asking.instruction)
    answer = speaker.answer(task, [question], decoding_of(asking))[0]
    if isinstance(answer, Refused):
        from slm.errors import DataError

        raise DataError(answer.why, where=answer.question.id)
    spoken = speaker.wave(answer)
    if len(spoken):
        write_audio(wav, spoken)
    if as_json:
        print(json.dumps(as_record(answer, wav if len(spoken) else None), ensure_ascii=False))
    else:
        print("\n".join(shown(answer, wav if len(spoken) else None)))


def as_record(answer: Answer, wav: str | None) -> dict[str, Any]:
    """An answer as plain values."""
    return {
        **{"text": answer.text, "transcript": answer.transcript, "interleaved": answer.output.raw},
        **{"units": answer.units, "finished": answer.output.finished, "faults": answer.faults, "wav": wav},
    }


def shown(answer: Answer, wav: str | None) -> list[str]:
    """An answer as lines for people."""
    lines = [f"heard:   {answer.transcript}"] if answer.transcript else []
    lines.append(f"answers: {answer.text or answer.output.text}")
    if answer.units:
        lines.append(f"tokens:  {answer.output.raw!r}")
        lines.append(f"speech:  {wav}" if wav else f"speech:  {len(answer.units)} units; --speech makes them audible")
    return [*lines, *([f"faults:  {', '.join(answer.faults)}"] if answer.faults else [])]


def ask_all(job: GenerateJob) -> None:
    """Ask every question of a folder or data set, and publish the answers if that is wanted.

    Raises:
        ConfigError: publishing without a token in the environment.
        DataError: no such questions, or none of them can be asked.
    """
    from slm.generation.card import hub_token, push
    from slm.generation.dataset import answer_all
    from slm.generation.sources import open_source

    token = hub_token() if job.push_to_hub is not None else ""
    source = open_source(job)
    answer_all(job, source, fingerprint_of(job.model), lambda: open_speaker(job))
    print(job.out)
    if job.push_to_hub is not None:
        print(push(job.out, job.push_to_hub, token, public=job.public))
