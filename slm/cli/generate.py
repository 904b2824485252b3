"""`slm generate`: one question to one model, in text or as a WAV; the answer in text, and spoken."""

from __future__ import annotations

from pathlib import Path

from slm.errors import ConfigError, DataError


def ask(
    folder: str, prompt: str | None, *, audio: str | None, speech: str | None, out: str, max_new_tokens: int
) -> None:
    """Print what the model says; units in the answer become the WAV `out` when `speech` is given.

    Args:
        folder: step, adapter, or Hugging Face folder.
        prompt: a question in text; or
        audio: a WAV with a spoken one, which needs
        speech: folder of extractor and vocoder.

    Raises:
        ConfigError: not exactly one of prompt and audio; audio without speech.
        DataError: the model has other units than `speech` makes, or none.
    """
    if (prompt is None) == (audio is None):
        raise ConfigError("give a prompt or --audio, one of them", mend="slm generate STEP 'what colour is the sky'")
    if audio is not None and speech is None:
        raise ConfigError(
            "--audio needs --speech", mend="--speech DATA/speech: the extractor the model was trained with"
        )

    from slm.generation.generate import generate
    from slm.generation.output import split_output, to_wave
    from slm.model.load import load_model
    from slm.speech import load_speech
    from slm.speech.audio import read_audio, write_audio
    from slm.stages.sqa import split_answer
    from slm.tokens.chat import end_of_answer, render_prompt
    from slm.tokens.vocabulary import remove_repeats, strip_units, text_to_units, units_to_text

    loaded = load_model(folder)
    tools = load_speech(speech) if speech is not None else None
    if tools is not None and (loaded.vocabulary.units is None or loaded.vocabulary.units.codebook != tools[2].codebook):
        raise DataError(
            "the model does not know these units", where=str(speech), mend="give the speech folder of its data"
        )
    if audio is not None and tools is not None:
        wave, _ = read_audio(audio)
        units = [int(unit) for unit in tools[0].units([wave])[0]]
        prompt = units_to_text(remove_repeats(units) if tools[2].input == "removed" else units)
    ids = render_prompt(loaded.tokenizer, prompt or "")
    stop = {end_of_answer(loaded.tokenizer)}
    output = split_output(loaded.tokenizer, generate(loaded.model, [ids], stop=stop, max_new_tokens=max_new_tokens)[0])
    parts = split_answer(output.raw)
    if audio is not None and parts.answer:
        print(f"heard:   {strip_units(parts.transcript).strip()}\nanswers: {strip_units(parts.answer).strip()}")
        spoken = text_to_units(parts.interleaved)
    else:
        print(output.text)
        spoken = output.units
    if spoken and tools is not None:
        write_audio(Path(out), to_wave(spoken, tools[1]))
        print(f"speech:  {out}")
    elif spoken:
        print(f"({len(spoken)} speech units; --speech DATA/speech makes them audible)")
