"""`slm speech convert` and `slm speech env`: published extractors and vocoders, and the package they come from."""

from __future__ import annotations

from typing import Annotated

import typer

from slm.cli.common import job_from, need
from slm.errors import ConfigError

Pairs = Annotated[list[str] | None, typer.Argument(metavar="key=value...", show_default=False)]

CONVERT = (
    "slm speech convert out=FOLDER xlsr=xlsr2_1b_v2.pt kmeans=kmeans_10k.npy [vocoder=vocoder_v2.pt] [key=value …]"
)
ENV = "slm speech env seamless FOLDER [--source CHECKOUT] [--python PYTHON]"


def convert(overrides: Pairs = None) -> None:
    """Published checkpoints as a speech artifact: XLS-R with its codebook, and the code HiFi-GAN."""
    from slm.config.speech import SpeechConvertJob
    from slm.log import setup_logging

    job = job_from(SpeechConvertJob, overrides or [], CONVERT)
    setup_logging()
    from slm.speech.convert import convert_speech

    convert_speech(job)


def env(
    package: Annotated[str | None, typer.Argument(metavar="seamless", show_default=False)] = None,
    folder: Annotated[str | None, typer.Argument(metavar="FOLDER", show_default=False)] = None,
    source: Annotated[str | None, typer.Option(help="Checkout of the package, where there is no network.")] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter, 3.9 … 3.11; default: one that is found.")] = None,
) -> None:
    """An environment for the original seamless_communication, apart from everything else."""
    if need(package, ENV) != "seamless":
        raise ConfigError(f"no environment is known for {package!r}", mend=f"usage: {ENV}")
    target = need(folder, ENV)
    from slm.log import setup_logging
    from slm.speech.seamless_env import make_environment

    setup_logging()
    print(make_environment(target, source=source, python=python))
