"""The wav2vec 2.0 network behind XLS-R units: loaded up to one layer, run over batches of unequal length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from slm.device import best_device
from slm.errors import CheckpointError, MachineError
from slm.speech.audio import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
NETWORK_CONFIG = "config.json"


@dataclass(frozen=True)
class Network:
    """A network cut after one of its layers.

    Attributes:
        model: transformers' `Wav2Vec2Model` without the layers after the cut and without the last layer norm.
        device: where it is.
    """

    model: Any
    device: torch.device

    @classmethod
    def load(cls, folder: str | Path, layer: int, device: str = "auto", dtype: str = "float32") -> Network:
        """Read a Hugging Face folder up to `layer`.

        Args:
            folder: config.json and safetensors; nothing is downloaded.
            layer: the last layer that is loaded, counted from 1.
            device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`.
            dtype: float32, bfloat16 or float16.

        Raises:
            CheckpointError: not such a network, custom code, too few layers, missing or misshapen weights, pickles.
            MachineError: no such device.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import Wav2Vec2Config, Wav2Vec2Model
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        place = find_device(device)
        if dtype not in DTYPES:
            raise MachineError(f"no such number format: {dtype}", mend=f"one of {', '.join(DTYPES)}")
        about = read_network_config(folder, layer)
        config = Wav2Vec2Config.from_dict({**about, "num_hidden_layers": layer, "mask_time_prob": 0.0})
        config.mask_feature_prob = 0.0
        try:
            model, told = cast(Any, Wav2Vec2Model).from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                attn_implementation="sdpa",
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"the network can't be loaded: {str(error).splitlines()[0]}",
                where=str(folder),
                mend="weights have to be safetensors; convert or download the folder again",
            ) from error
        for fault, key in (("missing", "missing_keys"), ("of another shape than config.json says", "mismatched_keys")):
            names = sorted(entry if isinstance(entry, str) else entry[0] for entry in told[key])
            if names:
                raise CheckpointError(
                    f"weights are {fault}: {names[0]} ({len(names)} in all)",
                    where=str(folder),
                    mend="convert or download the folder again",
                )
        # Transformers ends every cut with the norm that belongs after the last of all layers.
        model.encoder.layer_norm = torch.nn.Identity()
        torch.nn.utils.parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
        return cls(model.eval().requires_grad_(False).to(place), place)

    @property
    def width(self) -> int:
        """Features of a frame."""
        return int(self.model.config.hidden_size)

    @cached_property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return int(np.prod(self.model.config.conv_stride))

    @cached_property
    def field(self) -> int:
        """Samples that one frame is made of."""
        samples = 1
        for kernel, stride in zip(
            reversed(self.model.config.conv_kernel), reversed(self.model.config.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    def frames(self, samples: int) -> int:
        """Frames of so many samples; 0 when they are too few for one."""
        return (samples - self.field) // self.hop + 1 if samples >= self.field else 0

    def run(self, waves: Sequence[np.ndarray], audible: Sequence[int]) -> list[torch.Tensor]:
        """Features of normalised waves, float32 [frames, width] each, on the network's device.

        Args:
            waves: float32 [samples], each long enough for a frame; padded here to the longest.
            audible: how many samples of each count; frames made of later ones are seen by no other frame.
        """
        import torch

        longest = max(map(len, waves))
        batch = np.zeros((len(waves), longest), np.float32)
        for row, wave in enumerate(waves):
            batch[row, : len(wave)] = wave
        counts = [self.frames(len(wave)) for wave in waves]
        heard = [self.frames(count) for count in audible]
        with torch.inference_mode(), exact_convolutions():
            hidden = self._front(torch.from_numpy(batch).to(self.device, self.model.dtype))
            seen = None
            if min(heard) < hidden.shape[1]:
                steps = torch.arange(hidden.shape[1], device=self.device)
                seen = steps < torch.tensor(heard, device=self.device)[:, None]
            hidden = self.model.encoder(hidden, attention_mask=seen).last_hidden_state
        return [row[:count].float() for row, count in zip(hidden, counts, strict=True)]

    def _front(self, batch: torch.Tensor) -> torch.Tensor:
        """Convolutions and projection [rows, frames, width]."""
        import torch

        # Each recording by itself on a CPU: a batch of 16 kHz activations falls out of the cache and is slower.
        rows = batch.split(1) if self.device.type == "cpu" else [batch]
        hidden = torch.cat([self.model.feature_extractor(row) for row in rows])
        return self.model.feature_projection(hidden.transpose(1, 2))[0]


def read_network_config(folder: str | Path, layer: int) -> dict[str, Any]:
    """`config.json` of a network that XLS-R units can be had from.

    Raises:
        CheckpointError: missing or damaged; another kind of model; custom code; fewer layers than `layer`.
    """
    path = Path(folder) / NETWORK_CONFIG
    try:
        about = json.loads(path.read_text())
        kind, layers = about.get("model_type"), int(about.get("num_hidden_layers", 12))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"no readable config.json: {error}", where=str(path), mend="give a Hugging Face folder of a wav2vec 2.0"
        ) from None
    if "auto_map" in about:
        raise CheckpointError(
            "the model brings code of its own (trust_remote_code): it is not run",
            where=str(path),
            mend="give a folder that transformers loads by itself",
        )
    if kind != "wav2vec2":
        raise CheckpointError(f"a {kind} model, not a wav2vec2", where=str(path))
    if about.get("feat_extract_norm", "group") != "layer" or not about.get("do_stable_layer_norm", False):
        raise CheckpointError(
            "the network norms its convolutions over time or its layers last; units of a recording would depend on"
            " what it is batched with",
            where=str(path),
            mend="XLS-R and other large wav2vec 2.0 have feat_extract_norm: layer and do_stable_layer_norm: true",
        )
    if layer > layers:
        raise CheckpointError(
            f"layer {layer} is wanted, the network has {layers}",
            where=str(path),
            mend=f"layer=1 … {layers}, the one that the centroids were fitted on",
        )
    if SAMPLE_RATE % int(np.prod(about.get("conv_stride", [5, 2, 2, 2, 2, 2, 2]))):
        raise CheckpointError("the network has no whole number of units a second", where=str(path))
    return about


def exact_convolutions() -> AbstractContextManager[None]:
    """On a GPU: the same sums every time, of numbers that are not rounded to TF32 on the way, as on a CPU."""
    import torch

    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return cast(AbstractContextManager[None], flags)


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU, or else the CPU.

    Raises:
        MachineError: there is none.
    """
    import torch

    if name == "auto":
        return best_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MachineError(f"no such device: {name}", mend="auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"no such device: {name}; there are {torch.cuda.device_count()} GPUs", mend="take device=auto or cpu"
        )
    return device
