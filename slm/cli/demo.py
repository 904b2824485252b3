"""`slm demo`: a page on this machine at which one speaks to one or two models."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any

import typer

from slm.cli.common import need

USAGE = "slm demo STEP [STEP] [--speech FOLDER] [--port 7860]"


def demo(
    model: Annotated[str | None, typer.Argument(metavar="STEP", show_default=False)] = None,
    other: Annotated[str | None, typer.Argument(metavar="[STEP]", show_default=False)] = None,
    speech: Annotated[str | None, typer.Option(help="Folder of extractor and vocoder; default: the run's own.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of a vocoder that has several.")] = None,
    speaker: Annotated[int | None, typer.Option(help="Speaker of a vocoder that has several.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    constrained: Annotated[bool, typer.Option("--constrained", help="Well-formed answers only.")] = False,
    lora_scale: Annotated[float, typer.Option(help="Factor on the adapters' scale.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Speak to a model, or to two side by side, in the browser of this machine."""
    from slm.cli.generate import open_speaker
    from slm.config.generation import Asking
    from slm.config.loader import from_mapping
    from slm.demo.page import build_page, gradio, serve
    from slm.generation.dataset import decoding_of
    from slm.log import setup_logging

    values: dict[str, Any] = {
        **{"speech": speech, "max_new_tokens": max_new_tokens, "temperature": temperature, "device": device},
        **{"constrained": constrained, "lora_scale": lora_scale, "language": language, "speaker": speaker},
    }
    folders = [need(model, USAGE, "runs/*/*/MANIFEST.json"), *([other] if other is not None else [])]
    asking = [from_mapping(Asking, {"model": folder, **values}, "command line") for folder in folders]
    gradio()  # before models are loaded
    setup_logging()
    labels = [PurePath(folder).name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = folders
    speakers = {label: open_speaker(one) for label, one in zip(labels, asking, strict=True)}
    page = build_page(speakers, decoding_of(asking[0]))
    print(f"{serve(page, port=port)}  (Ctrl-C ends it)", flush=True)
    page.block_thread()
