"""Runs the original seamless_communication package: a script for the environment that `slm speech env seamless` makes.

It imports nothing of this program and is imported by nothing of it. Requests come as lines of JSON on standard input,
answers go as lines of JSON to standard output, arrays lie in `.npy` files:

    {"setup": "extractor", "xlsr": PT, "kmeans": NPY, "layer": 35, "config": {…} or null, "device": "auto"}
    {"setup": "vocoder", "vocoder": PT, "config": {…} or null, "device": "auto"}            -> {"ready": true}
    {"waves": [NPY, …], "out": [NPY, …]}                                                    -> {"done": n}
    {"units": NPY, "out": NPY, "language": "eng", "speaker": -1, "durations": true}         -> {"done": 1}

A request that fails is answered by {"error": "…"}.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def card(name, model_type, arch, checkpoint, config):
    """A model card for a checkpoint on this machine."""
    from fairseq2.assets.card import AssetCard

    values = {"name": name, "model_type": model_type, "model_arch": arch, "checkpoint": Path(checkpoint).as_uri()}
    return AssetCard({**values, "model_config": config} if config else values)


def device_of(name):
    """The device of that name; `auto` is the first GPU, or else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


class Extractor:
    """The package's `UnitExtractor`."""

    def __init__(self, setup):
        from seamless_communication.models.unit_extractor import UnitExtractor

        about = card("local_xlsr", "wav2vec2", "xlsr2_1b_v2", setup["xlsr"], setup["config"])
        self.layer = setup["layer"] - 1  # the package counts layers from 0
        self.package = UnitExtractor(about, Path(setup["kmeans"]).as_uri(), device=device_of(setup["device"]))

    def answer(self, request):
        """Units of each wave, int32 [units]."""
        for wave, out in zip(request["waves"], request["out"], strict=True):
            samples = torch.from_numpy(np.load(wave)).to(self.package.device)
            units = self.package.predict(samples, self.layer, sample_rate=16000)
            np.save(out, units.cpu().numpy().astype(np.int32).reshape(-1))
        return {"done": len(request["out"])}


class Vocoder:
    """The package's `Vocoder`."""

    def __init__(self, setup):
        from seamless_communication.models.vocoder import load_vocoder_model

        about = card("local_vocoder", "vocoder_code_hifigan", "base", setup["vocoder"], setup["config"])
        self.device = device_of(setup["device"])
        self.package = load_vocoder_model(about, device=self.device, dtype=torch.float32).eval()

    def answer(self, request):
        """The wave of a row of units, float32 [samples]."""
        units = torch.from_numpy(np.load(request["units"]).astype(np.int64)).to(self.device)
        with torch.inference_mode():
            wave = self.package(units, request["language"], request["speaker"], dur_prediction=request["durations"])
        np.save(request["out"], wave.float().cpu().numpy().reshape(-1))
        return {"done": 1}


def main():
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the package prints must not mix with the answers
    tool: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "setup" in request:
                tool = {"extractor": Extractor, "vocoder": Vocoder}[request["setup"]](request)
                answer: dict = {"ready": True}
            else:
                answer = tool.answer(request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
