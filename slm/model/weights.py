"""Safetensors checkpoints rewritten file by file: what is held at once is one file, never the model twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slm.artifact import write_json
from slm.errors import CheckpointError
from slm.model.adapter import check_tensors, writing_weights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Change = Callable[[str, Tensor], Iterable[tuple[str, Tensor]]]
"""(name, tensor) of the source -> what is written for it: nothing, the same, or others."""


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder, in the index's order.

    Raises:
        CheckpointError: none there (pickles are not read), or the index names one that is missing.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        try:
            named = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            raise CheckpointError("the index of weights is damaged", where=str(folder / INDEX)) from None
        files = [folder / name for name in named]
    else:
        files = [folder / SINGLE]
    for file in files:
        if not file.is_file():
            pickles = any(folder.glob("*.bin"))
            raise CheckpointError(
                "only pickled weights here" if pickles else "weights are missing",
                where=str(file),
                mend="save the model with safetensors" if pickles else "make or download the folder again",
            )
    return files


def shapes_of(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, read from the files' heads."""
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        with _opened(file) as tensors:
            found.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return found


def read_tensors(folder: str | Path) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, name, tensor), one tensor at a time, file by file."""
    for file in weight_files(folder):
        with _opened(file) as tensors:
            for name in sorted(tensors.keys()):
                yield file, name, tensors.get_tensor(name)


def read_tensor(folder: str | Path, name: str) -> Tensor:
    """One tensor by name.

    Raises:
        CheckpointError: the checkpoint has no such tensor.
    """
    for file in weight_files(folder):
        with _opened(file) as tensors:
            if name in tensors.keys():  # noqa: SIM118
                return tensors.get_tensor(name)
    raise CheckpointError(f"weights are missing: {name}", where=str(folder))


class _opened:
    """`safe_open` whose failures name the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> Any:
        try:
            self._handle = safe_open(self.file, framework="pt")
            return self._handle.__enter__()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"weights can't be read: {error}", where=str(self.file), mend="make or download the folder again"
            ) from error

    def __exit__(self, *_: object) -> None:
        self._handle.__exit__(None, None, None)


def rewrite(source: str | Path, out: str | Path, change: Change) -> dict[str, tuple[int, ...]]:
    """Copy a checkpoint through `change`, one file after another; each file is read back before the next.

    Args:
        source: Hugging Face folder.
        out: existing folder; gets `model.safetensors`, or numbered files with their index.

    Returns:
        Name -> shape of what was written.

    Raises:
        CheckpointError: a tensor that is empty, not finite, written twice, or reads back differently.
        MachineError: no space or no permission.
    """
    out = Path(out)
    parts: list[tuple[Path, dict[str, tuple[int, ...]]]] = []
    bytes_in_all = 0
    for file in weight_files(source):
        tensors: dict[str, Tensor] = {}
        with _opened(file) as old:
            for name in sorted(old.keys()):
                tensors.update((new, value.contiguous()) for new, value in change(name, old.get_tensor(name)))
        if not tensors:
            continue
        twice = next((name for _, written in parts for name in written if name in tensors), None)
        if twice is not None:
            raise CheckpointError(f"{twice} is in two files", where=str(source))
        check_tensors(tensors, str(file))
        part = out / f".part{len(parts)}.safetensors"
        with writing_weights(part):
            save_file(tensors, part, metadata={"format": "pt"})
        _require_equal(part, tensors)
        bytes_in_all += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        parts.append((part, {name: tuple(tensor.shape) for name, tensor in tensors.items()}))
    if not parts:
        raise CheckpointError("nothing to save: no tensors", where=str(source))
    _name_parts(out, parts, bytes_in_all)
    return {name: shape for _, written in parts for name, shape in written.items()}


def _name_parts(out: Path, parts: list[tuple[Path, dict[str, tuple[int, ...]]]], bytes_in_all: int) -> None:
    if len(parts) == 1:
        os.replace(parts[0][0], out / SINGLE)
        return
    where: dict[str, str] = {}
    for i, (part, written) in enumerate(parts):
        name = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        os.replace(part, out / name)
        where.update(dict.fromkeys(written, name))
    write_json(out / INDEX, {"metadata": {"total_size": bytes_in_all}, "weight_map": dict(sorted(where.items()))})


def _require_equal(file: Path, tensors: dict[str, Tensor]) -> None:
    with _opened(file) as saved:
        for name, tensor in tensors.items():
            if not torch.equal(saved.get_tensor(name), tensor):
                raise CheckpointError(f"{name} reads back differently", where=str(file))


def prove_loadable(folder: str | Path) -> None:
    """The folder's weights are those that transformers asks for: same names, same shapes. Holds no weights.

    Raises:
        CheckpointError: names the first weight that is missing, left over, or of another shape.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # seconds, which a reader of weights need not wait

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = cast(Any, AutoModelForCausalLM).from_config(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = shapes_of(folder)
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
        found.pop("lm_head.weight", None)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"the model can't be loaded again: {name} is {found.get(name)} in the file, {wanted.get(name)} in it",
                where=str(folder),
            )


def copy_config(source: str | Path, out: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """A model's `config.json`, and its `generation_config.json` where it has one, for other weights.

    Args:
        dtype: what the weights are stored in; None: as the source says.

    Raises:
        CheckpointError: `config.json` is missing or no JSON object.
    """
    values = read_config(source)
    if dtype is not None:
        values.pop("torch_dtype", None)
        values["dtype"] = str(dtype).removeprefix("torch.")
    write_json(Path(out) / "config.json", values)
    if (generation := Path(source) / "generation_config.json").is_file():
        shutil.copy(generation, out)


def read_config(folder: str | Path) -> dict[str, Any]:
    """`config.json` as it stands.

    Raises:
        CheckpointError: missing or no JSON object.
    """
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no readable config.json: {error}", where=str(path)) from error
    if not isinstance(values, dict):
        raise CheckpointError("config.json is no JSON object", where=str(path))
    return values
