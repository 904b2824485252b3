"""Units of speech a second: batches against one recording at a time, and how near that is to what the device can do.

    python benchmarks/speech.py                      # CPU: width 512, 6 layers, batches of 8
    python benchmarks/speech.py --device cuda        # one GPU: XLS-R 1B: 35 of its layers, 10,000 units
    python benchmarks/speech.py --size pico          # does it run at all

Weights are random, which changes no time, and drawn from a seed; recordings are noise of the given lengths; centroids
are frames of it. Three contenders get the same waves: transformers' own `Wav2Vec2Model` called once a recording (what
one writes by hand), our extractor once a recording, and our extractor on batches. Each makes units, nearest centroid
included. Times are the least of `--repeats` passes, after one that does not count. Units have to be equal in float32.

Work is counted by the formula in `work`, padding left out; the limit is what the device's own matrix product (square,
float32 on a CPU, else of the contender's precision) does in the same process. `--write` puts the table into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page import write_section

from slm.config.speech import XlsrConfig
from slm.speech.xlsr import XlsrFeatures, XlsrKMeans, normalise

RATE = 16_000
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@dataclass(frozen=True)
class Size:
    """A network and its codebook.

    Attributes:
        width, layers, heads, feed_forward: of the encoder, layers up to the one whose output is used.
        channels: of the convolutions.
        units: centroids.
    """

    width: int
    layers: int
    heads: int
    feed_forward: int
    channels: int
    units: int


SIZES = {
    "pico": Size(32, 2, 4, 64, 32, 50),
    "small": Size(512, 6, 8, 2048, 512, 1000),
    "1b": Size(1280, 35, 16, 5120, 512, 10_000),
}


def save_network(size: Size, folder: Path) -> None:
    """A Hugging Face folder of random weights with the layout of XLS-R."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=size.width, num_hidden_layers=size.layers, num_attention_heads=size.heads,
        intermediate_size=size.feed_forward, conv_dim=[size.channels] * 7, conv_kernel=list(KERNELS),
        conv_stride=list(STRIDES), conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True,
        num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16, mask_time_prob=0.0,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(folder)


def make_waves(lengths: Sequence[float]) -> list[np.ndarray]:
    """Noise of so many seconds each."""
    chance = np.random.default_rng(0)
    return [(0.1 * chance.standard_normal(int(seconds * RATE))).astype(np.float32) for seconds in lengths]


def work(size: Size, samples: int) -> float:
    """Floating-point operations on one recording; a multiplication and its addition are two.

    Convolutions 2·in·out·kernel a frame, projection 2·channels·width, positions 2·width²/16·128, a layer
    8·width² + 4·width·feed_forward and for attention 4·frames·width, distances 2·width·units, each a frame.
    """
    total, frames, channels = 0.0, samples, 1
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        frames = (frames - kernel) // stride + 1
        total += 2.0 * channels * size.channels * kernel * frames
        channels = size.channels
    layer = 8 * size.width**2 + 4 * size.width * size.feed_forward + 4 * frames * size.width
    once = 2 * channels * size.width + 2 * size.width**2 // 16 * 128 + 2 * size.width * size.units
    return total + frames * (once + size.layers * layer)


def product_limit(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Floating-point operations a second of a square matrix product, the best of its repeats."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * side**3 / min(timed(lambda: left @ right, device, repeats + 2))


def timed(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs, after one that warms up."""
    run()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return found


class ByHand:
    """transformers' model, one recording a call: hidden states, then the nearest centroid."""

    def __init__(self, folder: Path, size: Size, extractor: XlsrKMeans, dtype: torch.dtype) -> None:
        from transformers import Wav2Vec2Model

        self.device, self.size = extractor.source.network.device, size
        self.model = Wav2Vec2Model.from_pretrained(folder, dtype=dtype).eval().to(self.device)
        self.dtype, self.points = dtype, torch.from_numpy(extractor.centroids).to(self.device)

    def units(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of each wave in turn."""
        found = []
        with torch.inference_mode():
            for wave in waves:
                heard = torch.from_numpy(normalise(wave)).to(self.device, self.dtype)[None]
                # The last hidden state would have the norm after all layers on it; the one before that does not.
                seen: list[torch.Tensor] = []
                hook = self.model.encoder.layer_norm.register_forward_pre_hook(
                    lambda _, given, seen=seen: seen.append(given[0])
                )
                self.model(heard)
                hook.remove()
                frames = seen[0][0].float()
                scores = (self.points**2).sum(dim=1) - 2.0 * frames @ self.points.T
                found.append(scores.argmin(dim=1).int().cpu().numpy())
        return found


def open_extractor(folder: Path, size: Size, device: str, dtype: str, batch_s: float) -> XlsrKMeans:
    """Our extractor with a codebook of the network's own frames."""
    config = XlsrConfig(model=str(folder), layer=size.layers, batch_s=batch_s)
    source = XlsrFeatures.open(config, device, dtype)
    chance = np.random.default_rng(1)
    some = np.concatenate(source.features(make_waves([4.0] * -(-size.units // 100))))
    points = some[chance.choice(len(some), size.units, replace=size.units > len(some))]
    points = points + 0.1 * some.std() * chance.standard_normal(points.shape)
    return XlsrKMeans(source, points.astype(np.float32), "benchmark")


def measure(options: argparse.Namespace, lengths: Sequence[float], dtype: str, folder: Path) -> list[str]:
    """Rows of the table for recordings of these lengths; raises if units differ in float32."""
    size = SIZES[options.size]
    waves = make_waves(lengths)
    seconds = sum(map(len, waves)) / RATE
    extractor = open_extractor(folder, size, options.device, dtype, options.batch_s)
    device, number = extractor.source.network.device, getattr(torch, dtype)
    by_hand = ByHand(folder, size, extractor, number)
    batches = [waves[at : at + options.batch] for at in range(0, len(waves), options.batch)]
    contenders: list[tuple[str, Callable[[], list[np.ndarray]]]] = [
        ("transformers, one at a time", lambda: by_hand.units(waves)),
        ("ours, one at a time", lambda: [extractor.units([wave])[0] for wave in waves]),
        (f"ours, batches of {options.batch}", lambda: [each for batch in batches for each in extractor.units(batch)]),
    ]
    limit = product_limit(device, number, options.repeats)
    operations = sum(work(size, len(wave)) for wave in waves)
    rows, first, alone = [], 0.0, None
    for name, run in contenders:
        units = run()
        took = min(timed(run, device, options.repeats))
        first = first or took
        alone = units if alone is None else alone
        same = np.mean([np.mean(a == b) for a, b in zip(alone, units, strict=True)])
        if dtype == "float32" and same < 1.0:
            raise SystemExit(f"{name}: {1 - same:.2%} of the units differ from those of transformers")
        told = f"{min(lengths):g}" if min(lengths) == max(lengths) else f"{min(lengths):g} to {max(lengths):g}"
        rows.append(
            f"| {told} s | {dtype} | {name} | {seconds / took:,.1f} | {first / took:.2f} | "
            f"{operations / took / 1e12:.3g} | {operations / took / limit:.0%} | {same:.2%} |"
        )
        print(rows[-1], flush=True)
    return rows


def machine(device: str) -> str:
    """In words."""
    if device.startswith("cuda"):
        return f"one {torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} threads of a CPU ({platform.machine()}), torch {torch.__version__}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=sorted(SIZES), help="default: small on a CPU, 1b on a GPU")
    parser.add_argument("--seconds", type=float, nargs="+", help="lengths measured one by one; default by device")
    parser.add_argument("--recordings", type=int, help="of each length")
    parser.add_argument("--dtypes", nargs="+", help="default: float32 on a CPU, and bfloat16 and float16 on a GPU")
    parser.add_argument("--batch", type=int, default=8, help="recordings of a batch")
    parser.add_argument("--batch-s", type=float, default=640.0, help="seconds that go through the network together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    options.size = options.size or ("1b" if cuda else "small")
    count = options.recordings or (4 * options.batch if cuda else options.batch)
    plain = options.seconds or ([4.0, 12.0, 30.0] if cuda else [0.5, 1.0, 2.0, 4.0, 8.0])
    mixed = np.random.default_rng(2).uniform(0.5 * min(plain), max(plain), count).round(2).tolist()
    head = "| recordings | precision | extractor | s of audio/s | times | TFLOP/s | of the limit | same units |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as scratch:
        save_network(SIZES[options.size], Path(scratch))
        for dtype in options.dtypes or (["float32", "bfloat16", "float16"] if cuda else ["float32"]):
            for lengths in [*([seconds] * count for seconds in plain), mixed]:
                lines += measure(options, lengths, dtype, Path(scratch))
    if options.write:
        command = " ".join(["python benchmarks/speech.py", *sys.argv[1:]])
        write_section("speech", "\n".join([f"`{command}` on {machine(options.device)}:", "", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
