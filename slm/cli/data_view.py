"""How `slm data` shows what it found on a terminal, in a pipe, and without colours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from slm.data.inspect import Run, Sample
from slm.data.reader import ShardSet
from slm.data.verify import Verification
from slm.errors import SlmError

PIPE_WIDTH = 160
"""Columns of tables in a file or a pipe."""
BAR_WIDTH = 40
BAR_ROWS = 16
EIGHTHS = " ▏▎▍▌▋▊▉█"
STYLES = {(False, False): "bright_black", (True, False): "cyan dim", (False, True): "bold green", (True, True): "green"}
"""Style of (unit, label)."""
OPEN, CLOSE = "[[", "]]"
MANY_EPOCHS = 4


def make_console(plain: bool) -> Console:
    """Standard output; without colours and frames when `plain`."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, color_system=None if plain else "auto", highlight=False, markup=False, emoji=False)


@contextmanager
def progress_bar(words: str, total: int, *, size: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the block runs, if that is a terminal; yields what moves it on.

    Args:
        size: `total` is in bytes.
    """
    console = Console(stderr=True)
    count = DownloadColumn() if size else MofNCompleteColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (total and console.is_terminal)) as bar:
        task = bar.add_task(words, total=total)
        yield lambda amount: bar.advance(task, amount)


def size_text(count: float) -> str:
    """`3200000` bytes as `3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(*columns: str, left: Sequence[int] = (0,)) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i in left else "right", no_wrap=True)
    return table


def show_info(sets: Sequence[dict[str, Any]], console: Console) -> None:
    """A line for each set and one for all, then lengths and particulars of each."""
    tokens = sum(facts["tokens"] for facts in sets)
    table = _table("set", "samples", "tokens", "share", "labels", "units", "shards", "size", "B/token")
    for facts in sets:
        table.add_row(
            facts["name"], f"{facts['samples']:,}", f"{facts['tokens']:,}", _percent(facts["tokens"] / tokens),
            _percent(facts["labels"] / facts["tokens"]), _percent(_units(facts["kinds"])),
            str(facts["shards"]), size_text(facts["bytes"]), f"{facts['bytes'] / facts['tokens']:.2f}",
        )  # fmt: skip
    if len(sets) > 1:
        total = {name: sum(facts[name] for facts in sets) for name in ("samples", "labels", "shards", "bytes")}
        units = sum(_units(facts["kinds"]) * facts["tokens"] for facts in sets)
        table.add_row(
            "all", f"{total['samples']:,}", f"{tokens:,}", _percent(1), _percent(total["labels"] / tokens),
            _percent(units / tokens), str(total["shards"]), size_text(total["bytes"]),
            f"{total['bytes'] / tokens:.2f}", style="bold",
        )  # fmt: skip
    console.print(table)
    for facts in sets:
        console.print()
        _show_particulars(facts, console)
        for line in histogram_lines(facts["histogram"], ascii_only=_ascii(console)):
            console.print(line, soft_wrap=True)


def _units(kinds: dict[str, float]) -> float:
    return sum(share for kind, share in kinds.items() if kind.endswith("units"))


def _show_particulars(facts: dict[str, Any], console: Console) -> None:
    console.print(Text(facts["folder"], style="bold"), soft_wrap=True)
    vocabulary, quantiles = facts["vocabulary"], facts["quantiles"]
    units = vocabulary["units"]
    words = f"{vocabulary['size']:,} tokens"
    if units:
        words += f", {units['count']:,} of them units ({units['extractor']}, {units['rate_hz']:g} a second)"
    console.print(f"  vocabulary  {words}, fingerprint {vocabulary['fingerprint'][:12]}", soft_wrap=True)
    if "examples" in facts:
        left = ", ".join(f"{facts[name]:,} {word}" for name, word in
                         (("empty", "empty"), ("dropped", "too long and dropped"), ("truncated", "cut short"))
                         if facts.get(name))  # fmt: skip
        console.print(f"  made from   {facts['examples']:,} {facts['recipe']} examples: {left or 'all are in'}")
    kinds = ", ".join(f"{kind} {_percent(share)}" for kind, share in facts["kinds"].items() if share)
    read = "" if facts["kinds_groups"] == facts["groups"] else f"  (from {facts['kinds_groups']} groups of them)"
    console.print(f"  tokens      {kinds}{read}", soft_wrap=True)
    spread = ", ".join(f"{quantiles[q]:,}" for q in ("0.1", "0.5", "0.9", "0.99"))
    console.print(f"  lengths     mean {facts['mean']:,.1f}; 10, 50, 90, 99 %: {spread}; longest {facts['longest']:,}")


def _ascii(console: Console) -> bool:
    return console.color_system is None or console.options.ascii_only


def histogram_lines(histogram: dict[str, list[int]], *, ascii_only: bool = False) -> list[str]:
    """Bars of samples per range of lengths, neighbours joined until they are few enough to look at."""
    edges, counts = list(histogram["edges"]), list(histogram["counts"])
    first = next((i for i, count in enumerate(counts) if count), 0)
    last = max((i for i, count in enumerate(counts) if count), default=0)
    edges, counts = edges[first : last + 2], counts[first : last + 1]
    step = -(-len(counts) // BAR_ROWS)
    joined = [sum(counts[i : i + step]) for i in range(0, len(counts), step)]
    borders = [*edges[:-1:step], edges[-1]]
    total, top = max(1, sum(joined)), max(1, *joined)
    wide = len(f"{edges[-1]:,}")
    lines = []
    for low, high, count in zip(borders, borders[1:], joined, strict=False):
        bar = _bar(count / top, ascii_only)
        dash = "-" if ascii_only else "–"
        label = f"{low + 1:>{wide},} {dash} {high:>{wide},}" if high > low + 1 else f"{high:>{2 * wide + 3},}"
        lines.append(f"  {label}  {bar:<{BAR_WIDTH}} {count:>9,}  {_percent(count / total):>7}")
    return lines


def _bar(share: float, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * (round(share * BAR_WIDTH) or int(share > 0))
    eighths = round(share * BAR_WIDTH * 8) or int(share > 0)
    return EIGHTHS[8] * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def show_verification(found: Verification, console: Console) -> None:
    """Nothing wrong, or every bad place."""
    what = "every byte" if found.full else "manifest, sizes, indexes, head and end of every shard"
    counts = f"{found.shards:,} shards, {found.groups:,} groups, {found.samples:,} samples, {size_text(found.bytes)}"
    console.print(Text(found.folder, style="bold"), soft_wrap=True)
    console.print(f"  promised  {counts}", soft_wrap=True)
    console.print(f"  checked   {what}", soft_wrap=True)
    if found.strays:
        known = ", ".join(found.strays[:5]) + (", …" if len(found.strays) > 5 else "")
        console.print(
            Text(f"  note      not in the manifest, and read by stock readers of *.tar: {known}", style="yellow"),
            soft_wrap=True,
        )
    if found.ok:
        hint = "" if found.full else "  (--full reads every byte)"
        console.print(Text("  good").append(hint, style="dim"), style="green")
        return
    bad = found.bad_files
    places = "1 bad place" if len(found.damages) == 1 else f"{len(found.damages):,} bad places"
    console.print(Text(f"  BAD       {places} in {len(bad)} {'file' if len(bad) == 1 else 'files'}", style="bold red"))
    table = _table("  file", "group", "byte", "what is wrong", left=(0, 3))
    table.columns[3].no_wrap, table.columns[3].overflow = False, "fold"
    for damage in found.damages:
        group = "" if damage.group is None else f"{damage.group:,}"
        table.add_row(f"  {damage.file}", group, f"{damage.offset:,}", damage.what)
    console.print(table)
    console.print("  mend      copy these files from where they are intact, or build the set again:", soft_wrap=True)
    console.print(f"            {' '.join(bad)}", soft_wrap=True)


def show_unreadable(folder: str, error: SlmError, console: Console) -> None:
    """A folder that there is nothing to check against."""
    console.print(Text(folder, style="bold"), soft_wrap=True)
    console.print(Text(f"  BAD       {error.what}", style="bold red"), soft_wrap=True)
    if error.mend:
        console.print(f"  mend      {error.mend}", soft_wrap=True)


def show_samples(
    samples: Iterable[tuple[Sample, Sequence[Run]]],
    shards: ShardSet,
    decode: Callable[[list[int]], str] | None,
    units_shown: int,
    console: Console,
    *,
    marks: bool = False,
) -> None:
    """Samples with their labels in colour, or between brackets where there are no colours.

    Args:
        decode: ids to text; None shows the ids of text tokens.
        units_shown: units of a run that are printed; 0 is all.
        marks: brackets in any case.
    """
    marks = marks or console.no_color or console.color_system is None
    rate = shards.vocabulary.units.rate_hz if shards.vocabulary.units else 0.0
    console.print(_legend(marks), soft_wrap=True)
    if decode is None:
        console.print("no tokenizer was found near the shards: text is shown as ids (--tokenizer FOLDER)")
    for sample, runs in samples:
        units = sum(len(run.ids) for run in runs if run.unit)
        labels = int(sample.mask.sum())
        head = f"sample {sample.number:,}  {sample.file} group {sample.group}  {len(sample.ids):,} tokens, "
        head += f"{labels:,} labels"
        if units:
            head += f", {units:,} units ({units / rate:.1f} s if repeats are kept)"
        console.print()
        console.print(Text(head, style="bold" if not marks else ""), soft_wrap=True)
        body = Text()
        for i, run in enumerate(runs):
            opens = marks and run.label and (i == 0 or not runs[i - 1].label)
            closes = marks and run.label and (i + 1 == len(runs) or not runs[i + 1].label)
            text = _run_text(run, shards, decode, units_shown, ascii_only=marks)
            text = (OPEN if opens else "") + text + (CLOSE if closes else "")
            body.append(text, style="" if marks else STYLES[run.unit, run.label])
        console.print(body)


def _legend(marks: bool) -> Text:
    if marks:
        return Text(f"labels, which the model is trained to say, are between {OPEN} and {CLOSE}; units in < >")
    legend = Text("labels, which the model is trained to say: ")
    legend.append("text", style=STYLES[False, True]).append(" ⟨units⟩", style=STYLES[True, True])
    legend.append("   prompt: ").append("text", style=STYLES[False, False])
    return legend.append(" ⟨units⟩", style=STYLES[True, False])


def _run_text(
    run: Run, shards: ShardSet, decode: Callable[[list[int]], str] | None, shown: int, *, ascii_only: bool
) -> str:
    if run.unit:
        units = shards.vocabulary.to_units(run.ids)
        some = units if not shown or len(units) <= shown + 1 else units[:shown]
        more = f" {'...' if ascii_only else '…'} +{len(units) - len(some)}" if len(some) < len(units) else ""
        words = " ".join(map(str, some)) + more
        return f"<{words}>" if ascii_only else f"⟨{words}⟩"
    if decode is None:
        return f" {' '.join(map(str, run.ids))} "
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in decode(run.ids))


def show_mix(path: str, mix: dict[str, Any], console: Console, *, base: str | None) -> None:
    """The run's size, and a line for each source.

    Args:
        base: the model's folder when its vocabulary could not be compared.
    """
    console.print(Text(path, style="bold"), soft_wrap=True)
    labels = _percent(mix["labels"] / mix["tokens"])
    console.print(
        f"  {mix['steps']:,} steps of {mix['rows_per_step']:,} rows of {mix['pack_length']:,} tokens: "
        f"{mix['rows']:,} rows, {mix['tokens']:,} tokens, about {labels} of them labels",
        soft_wrap=True,
    )
    table = _table(
        "  source", "ratio", "rows", "tokens", "share", "of labels", "samples", "epochs", "wraps", "fill", "of"
    )
    for source in mix["sources"]:
        table.add_row(
            f"  {source['name']}", f"{source['ratio']:g}", f"{source['rows']:,}", f"{source['tokens']:,}",
            _percent(source["share"]), _percent(source["labels"] / max(1, mix["labels"])), f"{source['samples']:,}",
            f"{source['epochs']:.2f}", str(source["wraps"]), _percent(source["fill"]),
            f"{source['set_samples']:,} samples, {source['set_tokens']:,} tokens",
        )  # fmt: skip
    console.print(table)
    for note in mix_notes(mix):
        console.print(f"  {note}", soft_wrap=True)
    if base is not None:
        console.print(f"  no vocabulary at {base}: the sources were compared with each other only", soft_wrap=True)


def mix_notes(mix: dict[str, Any]) -> list[str]:
    """What a person would want to know before starting."""
    notes = []
    own, *replayed = mix["sources"]
    if replayed:
        times = mix["block"] // sum(source["weight"] for source in mix["sources"])
        block = ", ".join(f"{times * source['weight']:,} of {source['name']}" for source in mix["sources"])
        notes.append(f"every {mix['block']:,} rows hold exactly {block}")
    if own["epochs"] < 1:
        notes.append(f"{own['name']}: {_percent(1 - own['epochs'])} of its rows are never read")
    for source in mix["sources"]:
        if source.get("dropped"):
            notes.append(f"{source['name']}: {source['dropped']:,} samples are longer than a row and left out")
    for source in replayed:
        if source["epochs"] > MANY_EPOCHS:
            notes.append(f"{source['name']}: small for its ratio, every sample comes {source['epochs']:.1f} times")
    return notes
