"""`slm data info | verify | preview | stats | mix`: looking at shards before anything trains on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli.common import need
from slm.errors import DataError, MachineError

if TYPE_CHECKING:
    from slm.config.stage import StageConfig
    from slm.tokens.vocabulary import Vocabulary

Folders = Annotated[list[str] | None, typer.Argument(metavar="SHARDS...", show_default=False)]
Folder = Annotated[str | None, typer.Argument(metavar="SHARDS", show_default=False)]
Plain = Annotated[bool, typer.Option("--plain", help="No colours, no characters beyond ASCII.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, for scripts.")]

FOUND = "**/shards/*/MANIFEST.json"


def info(folders: Folders = None, plain: Plain = False, as_json: Json = False) -> None:
    """What shard sets hold: counts, kinds of tokens, lengths."""
    from slm.cli.data_view import make_console, show_info
    from slm.data.inspect import describe_set

    sets = [describe_set(folder) for folder in _several(folders, "slm data info SHARDS…")]
    if as_json:
        print(json.dumps(sets, indent=1))
    else:
        show_info(sets, make_console(plain))


def verify(
    folders: Folders = None,
    full: Annotated[bool, typer.Option("--full", help="Read every byte, not only sizes, indexes and ends.")] = False,
    plain: Plain = False,
    as_json: Json = False,
) -> int:
    """Find everything that is wrong with shard sets: bad shards and groups by name; exit code 3 if there are any."""
    from slm.cli.data_view import make_console, progress_bar, show_unreadable, show_verification
    from slm.data.verify import set_bytes, set_manifest, verify_shards

    chosen = _several(folders, "slm data verify SHARDS… [--full]")
    console = make_console(plain)
    reports: list[dict[str, Any]] = []
    for folder in chosen:
        try:
            total = set_bytes(set_manifest(folder)) if full else 0
            with progress_bar(f"verifying {folder}", total) as progress:
                found = verify_shards(folder, full=full, progress=progress)
        except DataError as error:
            reports.append({"folder": folder, "ok": False, "error": error.what})
            if not as_json:
                show_unreadable(folder, error, console)
            continue
        reports.append({**vars(found), "ok": found.ok, "damages": [vars(damage) for damage in found.damages]})
        if not as_json:
            show_verification(found, console)
    if as_json:
        print(json.dumps(reports, indent=1))
    return 0 if all(report["ok"] for report in reports) else DataError.exit_code


def preview(
    folder: Folder = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many samples.")] = 3,
    at: Annotated[int, typer.Option(help="Number of the first one.")] = 0,
    random: Annotated[int | None, typer.Option(metavar="SEED", min=0, help="Draw them at random instead.")] = None,
    units: Annotated[int, typer.Option(min=0, help="Units shown of a run; 0 is all of them.")] = 12,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer; found by itself when it lies near the shards.")
    ] = None,
    plain: Plain = False,
) -> None:
    """Samples as text and units, the labels (what the model is trained to say) in colour."""
    from slm.cli.data_view import make_console, show_samples
    from slm.data.inspect import choose_samples, find_tokenizer, read_samples, runs_of
    from slm.data.reader import ShardSet

    shards = ShardSet(_several([folder] if folder else None, "slm data preview SHARDS [-n 3] [--at N | --random S]")[0])
    numbers = choose_samples(shards.samples, count=count, at=at, seed=random)
    path = tokenizer or find_tokenizer(shards)
    decode = _decoder(str(path), shards.vocabulary, str(shards.folder)) if path else None
    samples = ((sample, runs_of(sample, shards.vocabulary)) for sample in read_samples(shards, numbers))
    show_samples(samples, shards, decode, units, make_console(plain), marks=plain)


def stats(
    folders: Folders = None,
    out: Annotated[str, typer.Option(help="The page.")] = "stats.html",
    groups: Annotated[int, typer.Option(min=1, help="Groups read of each set at most, spread over it.")] = 1000,
) -> None:
    """A page with plots: lengths, where labels and units lie, how units are used, how well rows fill."""
    from slm.artifact import write_atomic
    from slm.cli.data_view import progress_bar
    from slm.data.inspect import statistics
    from slm.data.verify import set_manifest

    chosen = _several(folders, "slm data stats SHARDS… [--out stats.html] [--groups 1000]")
    try:
        from slm.report.shards import render_shards
    except ImportError as error:
        raise MachineError(f"{error.name} is not installed", mend="pip install 'slm[report]'") from None
    sets = []
    for folder in chosen:
        with progress_bar(
            f"reading {folder}", min(groups, set_manifest(folder).about["groups"]), size=False
        ) as progress:
            sets.append(statistics(folder, groups=groups, progress=progress))
    write_atomic(out, render_shards(sets))
    print(out)


def mix(
    config: Annotated[str | None, typer.Argument(metavar="STAGE.yaml", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", show_default=False)] = None,
    overlay: Annotated[list[str] | None, typer.Option("--with", help="YAML laid over it; may be repeated.")] = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """What a stage will really train on: tokens, share and epochs of every source."""
    from slm.cli.data_view import make_console, show_mix
    from slm.data.mix import describe_mix

    path = need(config, "slm data mix STAGE.yaml [--with OVERLAY] [key=value …]", "ds_configs/*/*.yaml")
    stage = _stage(path, overrides or [], overlay or [])
    model = _model_vocabulary(stage)
    found = describe_mix(stage, model)
    if as_json:
        print(json.dumps({"config": path, "compared_with_model": model is not None, **found}, indent=1))
    else:
        show_mix(path, found, make_console(plain), base=None if model else stage.model.base)


def _several(folders: Sequence[str] | None, usage: str) -> list[str]:
    if folders:
        return list(folders)
    need(None, usage, FOUND)
    raise AssertionError("need() has raised")


def _stage(path: str, overrides: list[str], overlays: list[str]) -> StageConfig:
    """The stage, with stand-ins for folders that a pipeline fills in and that do not change the mix."""
    from slm.config.loader import load_config, read_layers
    from slm.config.stage import StageConfig

    values = read_layers(path, overrides, overlays).values
    stand_ins = [] if "out" in values else ["out=unnamed"]
    if "base" not in (values.get("model") or {}):
        stand_ins.append("model.base=unnamed")
    return load_config(StageConfig, path, [*stand_ins, *overrides], overlays)


def _model_vocabulary(stage: StageConfig) -> Vocabulary | None:
    """The vocabulary of the stage's base; None while that is not made, or is no folder of ours."""
    from slm.artifact import read_json
    from slm.tokens.vocabulary import VOCABULARY_FILE, Vocabulary

    path = Path(stage.model.base) / VOCABULARY_FILE
    return Vocabulary.from_json(read_json(path)) if path.is_file() else None


def _decoder(folder: str, vocabulary: Vocabulary, shards: str) -> Any:
    """Ids to text by a tokenizer that has the shards' vocabulary.

    Raises:
        DataError: no tokenizer there, or another one.
    """
    from slm.tokens.chat import decode
    from slm.tokens.vocabulary import load_tokenizer, require_same_vocabulary

    loaded, its = load_tokenizer(folder)
    require_same_vocabulary(vocabulary, its, shards)
    return lambda ids: decode(loaded, ids)
