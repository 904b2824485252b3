"""Pico shard sets and a way to run the real launcher."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from engine.warm import Zygote

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["red", "dog", "paris", "cat", "two", "five", "moon", "tree"]


@pytest.fixture(scope="session")
def shards(tmp_path_factory, pico_tokenizer) -> dict[str, str]:
    """Recipe name -> folder of a small shard set of the pico vocabulary."""
    from slm.data.build import build_shards
    from slm.stages import RECIPES
    from slm.tokens.vocabulary import load_tokenizer, units_to_text

    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    draw = random.Random(0)

    def units():
        return [draw.randrange(16) for _ in range(draw.randint(4, 12))]

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))

    examples = {
        "llm": [{"input": f"repeat twice {word} {i}", "output": f"{word} {word}"} for i in range(20) for word in WORDS],
        "asr": [{"instruction": "write it", "discrete_unit": units(), "transcription": text()} for _ in range(160)],
        "tts": [
            {"instruction": "say it", "transcription": (words := text()), "interleaf": words + units_to_text(units())}
            for _ in range(160)
        ],
    }
    found = {}
    for name, rows in examples.items():
        out = tmp_path_factory.mktemp("shards") / name
        build_shards(
            rows,
            recipe=RECIPES[name],
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            out=str(out),
            config={"set": name},
            inputs={},
            max_length=128,
        )
        found[name] = str(out)
    return found


@dataclass
class Outcome:
    """What a run of the launcher left: exit code, output, run folder."""

    code: int
    text: str
    out: Path

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    @property
    def status(self) -> dict:
        return json.loads((self.out / "status.json").read_text())


_ports = itertools.count()


def free_port() -> int:
    """Of this test process's own thousand, below those that the kernel hands out to anybody who asks."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        port = 20_000 + 1000 * (worker % 12) + next(_ports) % 1000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def settings_of(out: Path, base: Path, shards: dict[str, str], /, **settings) -> dict:
    """A stage's YAML: pico defaults, some of them settable by a short name, the rest by their own key."""
    stage = settings.pop("stage", "asr")
    return {
        "out": str(out),
        "stage": stage,
        "model": {
            "base": str(settings.pop("base", base)),
            "previous": settings.pop("previous", None),
            "train": settings.pop("mode", "lora"),
            "lora": {"rank": 4, "alpha": 8, "dropout": settings.pop("dropout", 0.0), "targets": ["q_proj", "v_proj"]},
            "activation_checkpointing": settings.pop("activation_checkpointing", "none"),
            **settings.pop("model", {}),
        },
        "data": {
            "shards": settings.pop("data", shards[stage]),
            "pack": {"length": 128},
            **settings.pop("policy", {}),
        },
        "replay": settings.pop("replay", []),
        "batch": {"rows": 4, "micro_rows": settings.pop("micro_rows", 1)},
        "optim": {"lr": settings.pop("lr", 5e-3), **settings.pop("optim", {})},
        "duration": {"steps": settings.pop("steps", 6)},
        "checkpoint": {"every": settings.pop("every", 2), "keep": 2, **settings.pop("checkpoint", {})},
        "zero": str(ROOT / "ds_configs" / "zero" / settings.pop("zero", "cpu.json")),
        **settings,
    }


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Starts importing when the first test of a session asks for it."""
    server = Zygote(tmp_path_factory.mktemp("warm"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def train(tmp_path_factory, pico_base, shards, zygote):
    """Run `launcher/train.py`: `train(out, ranks=2, launcher="warm", **settings)`.

    `launcher` is `warm` (forked ranks, in a second), or `python`, `torchrun`, `deepspeed`: the real ones.
    `fault` is one of `faults.py`, for warm ranks; `limit` is a time limit, `port` where ranks meet. No operator may be
    compiled, but into `operators`.
    """
    extensions = tmp_path_factory.mktemp("extensions")

    def run(
        out,
        *,
        ranks=2,
        launcher="warm",
        file_limit=None,
        wait=True,
        fault=None,
        limit=None,
        port=None,
        operators=None,
        **settings,
    ):
        out = Path(out)
        file = tmp_path_factory.mktemp("config") / f"{out.name}.yaml"
        file.write_text(yaml.safe_dump(settings_of(out, pico_base, shards, **settings)))
        script, port = [str(ROOT / "launcher" / "train.py"), "--config", str(file)], str(port or free_port())
        script += ["--time-limit", limit] if limit is not None else []
        env = {
            **os.environ,
            "TORCH_EXTENSIONS_DIR": str(operators or extensions),
            "OMP_NUM_THREADS": "1",
            **({} if operators else {"CXX": "false", "CC": "false"}),
            **({"TEST_FAULT": json.dumps(fault)} if fault else {}),
        }
        if launcher == "warm":
            process = zygote.start(
                script, ranks, env | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, ROOT, file_limit
            )
        else:
            process = subprocess.Popen(
                launchers(ranks, port)[launcher] + script,
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        if not wait:
            return process
        text, _ = process.communicate(timeout=180)
        assert not list(extensions.iterdir()), "an operator was compiled"
        return Outcome(process.returncode, text, out)

    return run


def launchers(ranks: int, port: str) -> dict[str, list[str]]:
    """How a user starts ranks -> what stands before the script."""
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    return {
        "python": [sys.executable],
        "torchrun": [
            *(sys.executable, "-m", "torch.distributed.run"),
            *(f"--nproc_per_node={ranks}", f"--master_port={port}"),
        ],
        "deepspeed": [deepspeed, "--num_gpus", str(ranks), "--master_port", port],
    }
