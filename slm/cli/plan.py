"""`slm plan`: memory and time of a stage before it is started."""

from __future__ import annotations

from typing import Annotated

import typer

from slm.cli.commands import File, Pairs
from slm.cli.common import need


def plan(
    config: File = None,
    overrides: Pairs = None,
    gpus: Annotated[str | None, typer.Option(help="Devices of a host: 8x80GB, 8xH100.")] = None,
    nodes: Annotated[int, typer.Option(help="Hosts.", min=1)] = 1,
    host_gb: Annotated[float | None, typer.Option(help="Memory of a host in GB; not checked when left out.")] = None,
    network_gb_s: Annotated[float, typer.Option(help="Network of a host in GB/s, one direction.")] = 50.0,
    overlay: Annotated[list[str] | None, typer.Option("--with", help="YAML laid over it; may be repeated.")] = None,
) -> int:
    """Memory and time of a stage on a machine: does it fit, and what to change? Exit code 4: it does not fit."""
    usage = "slm plan CONFIG --gpus 8x80GB [--nodes 2] [--host-gb 1024] [key=value …]"
    path = need(config, usage, "ds_configs/stages/*.yaml", "ds_configs/tiny/*.yaml")
    devices = need(gpus, usage)
    from rich.console import Console

    from slm.config.loader import load_config
    from slm.config.stage import StageConfig
    from slm.errors import MachineError
    from slm.plan.devices import parse_gpus
    from slm.plan.estimate import Machine, make_plan
    from slm.plan.table import show

    stage = load_config(StageConfig, path, overrides or [], overlay or [])
    found = make_plan(stage, Machine(nodes, *parse_gpus(devices), host_gb=host_gb, network_gb_s=network_gb_s))
    show(found, path, Console(width=None, highlight=False))
    return 0 if found.fits else MachineError.exit_code
