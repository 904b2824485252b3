"""Train one stage.

    deepspeed --hostfile hosts launcher/train.py --config ds_configs/stages/tts.yaml optim.lr=1e-4

also under plain python, torchrun, srun and mpirun. `--with` lays overlays over the configuration,
`key.path=value` overrides single values, `--print-config` shows the result and stops.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from slm.errors import ConfigError, run_entry
from slm.startup import importing, leave_with

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--local_rank` is accepted because the deepspeed launcher adds it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="stage YAML")
    parser.add_argument(
        "--with", dest="overlays", nargs="+", action="extend", default=[], help="overlay YAMLs, in order"
    )
    parser.add_argument("--env-file", help="KEY=value lines, mode 0600: variables to set first")
    parser.add_argument("--time-limit", help="HH:MM:SS from now until the job is ended: it saves before, exit code 85")
    parser.add_argument("--set", dest="sets", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(argv)


def main() -> int:
    """Load the configuration, then train."""
    args = parse(sys.argv[1:])
    from slm.cluster.ranks import adopt_ranks

    if args.env_file is not None:
        from slm.cluster.environment import adopt_environment

        adopt_environment(args.env_file)
    adopt_ranks()
    if args.config is None:
        known = "\n".join(f"  {path.relative_to(ROOT)}" for path in sorted(ROOT.glob("ds_configs/*/*.yaml")))
        raise ConfigError(f"usage: launcher/train.py --config STAGE.yaml [key=value …]\nthere are:\n{known}")
    overlays = [path for path in args.overlays if "=" not in path]
    overrides = [*args.sets, *(text for text in args.overlays if "=" in text), *args.overrides]
    from slm.cluster.hostfile import check_launchers_hostfile
    from slm.config.duration import parse_duration
    from slm.config.loader import load_config
    from slm.config.stage import StageConfig
    from slm.log import rank

    try:
        check_launchers_hostfile()
        config = load_config(StageConfig, args.config, overrides, overlays)
        limit = STARTED + parse_duration(args.time_limit) if args.time_limit is not None else None
    except ConfigError as error:
        if rank() > 0:
            return error.exit_code  # every rank reads the same files; rank 0 says what is wrong with them
        raise
    if args.print_config:
        import yaml

        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
        return 0
    with importing():
        from slm.engine.distributed import prepare_environment

        prepare_environment()  # before anything imports deepspeed
        from slm.engine.run import train

    return train(config, command=shlex.join(["python", *sys.argv]), end=limit)


if __name__ == "__main__":
    sys.exit(leave_with(run_entry(main)))
