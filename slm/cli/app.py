"""The `slm` command: its groups and commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer

from slm.cli import build, commands, demo, doctor, generate, pipeline, plan
from slm.cli import data as shards
from slm.cli.speech import speech
from slm.errors import run_entry

HELP = "Train spoken language models in stages; measure forgetting, and prevent it."

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)
model = typer.Typer(help="Make models out of models.", no_args_is_help=True)
data = typer.Typer(help="Build data, and look at it.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(model, name="model")
app.add_typer(speech, name="speech")

app.command("validate")(commands.validate)
app.command("plan")(plan.plan)
app.command("train")(commands.train)
app.command("pipeline")(pipeline.pipeline)
app.command("status")(pipeline.status)
app.command("doctor")(doctor.doctor)
app.command("merge")(commands.merge)
app.command("export")(commands.export)
app.command("eval")(commands.evaluate)
app.command("report")(commands.report)
app.command("generate")(generate.generate)
app.command("demo")(demo.demo)
data.command("build")(build.data_build)
data.command("unpack")(build.data_unpack)
data.command("info")(shards.info)
data.command("verify")(shards.verify)
data.command("preview")(shards.preview)
data.command("stats")(shards.stats)
data.command("mix")(shards.mix)
model.command("tiny-base")(commands.model_tiny_base)
model.command("import")(commands.model_import)
model.command("expand")(commands.model_expand)
model.command("discount")(commands.model_discount)


def main(argv: Sequence[str] | None = None, name: str = "slm") -> int:
    """Run a command line.

    Args:
        argv: arguments without the program's name; default: those of this process.
        name: the program's name in usage lines.

    Returns:
        The exit code (see `slm.errors`); 2 for a command line that makes no sense.
    """
    return run_entry(lambda: _call(list(sys.argv[1:] if argv is None else argv), name))


def _call(argv: list[str], name: str) -> int:
    # click's own errors (unknown command, option without value) are shown by it, with exit code 2
    try:
        result = typer.main.get_command(app).main(args=argv, prog_name=name, standalone_mode=False)
    except Exception as error:
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from error
        show: Callable[[], None] | None = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0
