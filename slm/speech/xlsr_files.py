"""An XLS-R folder cut to the layers that are used: what a speech artifact keeps of a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from slm.artifact import write_json
from slm.errors import CheckpointError, from_os_error
from slm.speech.xlsr_network import NETWORK_CONFIG, read_network_config

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PREFIX = "wav2vec2."
"""Before every name, where the folder holds the network with a head for pre-training or recognition."""
_USED = re.compile(
    r"feature_extractor\.|feature_projection\.|encoder\.(pos_conv_embed|layer_norm)\.|encoder\.layers\.(\d+)\."
)


def copy_network(source: str | Path, target: str | Path, layer: int) -> None:
    """Write the network's folder again without what lies after `layer`.

    Args:
        source: Hugging Face folder with safetensors, in one file or several.
        target: folder that is made.
        layer: the last layer kept, counted from 1.

    Raises:
        CheckpointError: weights that are missing, pickled or damaged.
        MachineError: no space or no permission.
    """
    about = read_network_config(source, layer)
    kept: dict[str, torch.Tensor] = {}
    for file in _weight_files(Path(source)):
        for name, tensor in _tensors(file, layer):
            kept[name] = tensor
    target = Path(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        save_file(kept, target / WEIGHTS_FILE, metadata={"format": "pt"})
    except OSError as error:
        raise from_os_error(error, f"writing {target}") from error
    write_json(
        target / NETWORK_CONFIG,
        {**about, "architectures": ["Wav2Vec2Model"], "num_hidden_layers": layer, "mask_time_prob": 0.0},
    )


def _weight_files(folder: Path) -> list[Path]:
    files = [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        try:
            named = json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()
        except (ValueError, KeyError, AttributeError):
            raise CheckpointError("the index of weights is damaged", where=str(folder / INDEX_FILE)) from None
        files = [folder / name for name in sorted(set(named))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                "weights are missing", where=str(file), mend="only safetensors are read: save the model in that form"
            )
    return files


def _tensors(file: Path, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for full in sorted(opened.keys()):
                name = full.removeprefix(PREFIX)
                match = _USED.match(name)
                if match and (match[2] is None or int(match[2]) < layer):
                    yield name, opened.get_tensor(full)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"weights can't be read: {error}", where=str(file), mend="make or download the folder again"
        ) from error
