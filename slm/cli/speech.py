"""The group `slm speech`."""

from __future__ import annotations

import typer

from slm.cli import speech_models

speech = typer.Typer(help="Units from speech, and what makes them.", no_args_is_help=True)
speech.command("convert")(speech_models.convert)
speech.command("env")(speech_models.env)
