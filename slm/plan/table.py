"""The plan as a table that a person reads."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from slm.plan.estimate import EFFICIENCY, LABELS, USABLE, Plan


def size(count: float) -> str:
    """Bytes in the unit that fits: 412 MB, 16.2 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}" if count < 100 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:,.0f} B" if count else "–"


def duration(seconds: float) -> str:
    """Seconds for people: 0.21 s, 3 min, 5.2 h."""
    if not seconds:
        return "none"
    if seconds < 1:
        return f"{seconds * 1e3:,.0f} ms"
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def show(plan: Plan, title: str, console: Console) -> None:
    """Print it."""
    console.print(Group(_head(plan, title), _memory(plan), _time(plan), *_verdict(plan)))


def _head(plan: Plan, title: str) -> RenderableType:
    machine, setting = plan.machine, plan.setting
    where = f"{machine.hosts} x {machine.devices}" if machine.hosts > 1 else f"{machine.devices}"
    text = Text()
    text.append(f"\n{title}", style="bold")
    text.append(
        f" on {where} x {machine.device.name}, ZeRO-{setting.stage}, {'bf16' if setting.number == 2 else 'fp32'}\n"
    )
    text.append(f"{plan.parameters / 1e6:,.1f} M parameters, {plan.trained / 1e6:,.1f} M of them train")
    text.append(f"\n{setting.tokens:,} tokens a micro-batch, {plan.accumulation} of those a step and rank\n")
    return text


def _memory(plan: Plan) -> RenderableType:
    disk = any(item.disk for item in plan.items)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("memory of a rank", min_width=36)
    for name in ("device", "host", *(["nvme"] if disk else [])):
        table.add_column(name, justify="right", min_width=9)
    table.add_column("")
    for item in plan.items:
        if item.device or item.host or item.disk:
            cells = [size(item.device), size(item.host), *([size(item.disk)] if disk else [])]
            table.add_row(item.name, *cells, Text("exact" if item.exact else "about", style="dim"))
    totals = [plan.device_bytes, sum(item.host for item in plan.items)]
    cells = [size(total) for total in totals] + ([size(sum(item.disk for item in plan.items))] if disk else [])
    table.add_section()
    table.add_row("together", *cells, "", style="bold")
    capacity = plan.machine.device.memory_gb * 1e9
    table.add_row(f"of which may be filled ({USABLE:.0%})", size(capacity * USABLE), "", *([""] if disk else []), "")
    return table


def _time(plan: Plan) -> RenderableType:
    bound = "communication" if plan.traffic_s > plan.compute_s else "computing"
    offload = any(item.exact and (item.host or item.disk) for item in plan.items)
    lines = [
        f"\nmicro-batch  computing {duration(plan.compute_s)}, communication {duration(plan.traffic_s)} "
        f"({size(plan.traffic)}): bound by {bound}",
        f"             at {EFFICIENCY:.0%} of the peak, {LABELS:.0%} of the tokens supervised"
        + ("; offload not counted" if offload else ""),
        f"step         {duration(plan.step_s)}, {plan.tokens_per_s:,.0f} tokens/s"
        + (f"; {plan.steps:,} steps: {duration(plan.steps * plan.step_s)}" if plan.steps else ""),
        f"host         {size(plan.host_bytes)} of memory for {plan.machine.devices} ranks"
        + (f", of {plan.machine.host_gb:,.0f} GB" if plan.machine.host_gb else ""),
        f"disk         {size(plan.disk)} for checkpoints and export\n",
    ]
    return Text("\n".join(lines))


def _verdict(plan: Plan) -> list[RenderableType]:
    verdict = Text("it fits", style="bold green") if plan.fits else Text("it does not fit", style="bold red")
    lines: list[RenderableType] = [verdict]
    if plan.advice:
        lines.append(Text("could be faster:" if plan.fits else "what makes it fit:"))
        lines += [Text(f"  - {text}") for text in plan.advice]
    return [*lines, Text()]
