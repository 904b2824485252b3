"""Small random XLS-R and code HiFi-GAN checkpoints, named as they are published; weights recorded from the package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from slm.config.speech import SpeechConvertJob
from slm.speech.convert import convert_speech

RECORDED = Path(__file__).parent / "speech" / "seamless_parity" / "recorded.npz"
VOICES = '{"deu": [0], "eng": [3, 1], "fra": [2, 4]}'

# fairseq2's names -> fairseq's, the older ones
OLDER = (
    (r"encoder_frontend\.feature_extractor\.layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"encoder_frontend\.feature_extractor\.layers\.(\d+)\.layer_norm\.", r"feature_extractor.conv_layers.\1.2.1."),
    (r"encoder_frontend\.post_extract_layer_norm\.", "layer_norm."),
    (r"encoder_frontend\.model_dim_proj\.", "post_extract_proj."),
    (r"encoder_frontend\.pos_encoder\.conv\.", "encoder.pos_conv.0."),
    (r"self_attn\.output_proj", "self_attn.out_proj"),
    (r"ffn\.inner_proj", "fc1"),
    (r"ffn\.output_proj", "fc2"),
    (r"ffn_layer_norm", "final_layer_norm"),
    (r"masker\.temporal_mask_embed", "mask_emb"),
    (r"quantizer\.entries", "quantizer.vars"),
    (r"quantizer\.entry_proj", "quantizer.weight_proj"),
    (r"final_target_proj", "project_q"),
)


def tensors_of(recorded: dict[str, np.ndarray], name: str) -> dict[str, torch.Tensor]:
    """The recorded weights of `xlsr` or `vocoder`."""
    return {
        key.removeprefix(f"{name}/"): torch.from_numpy(value)
        for key, value in recorded.items()
        if key.startswith(f"{name}/")
    }


def older_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """fairseq2's naming as fairseq's."""
    found = {}
    for name, tensor in tensors.items():
        for new, old in OLDER:
            name = re.sub(new, old, name)
        found[name] = tensor
    return found


def write_checkpoints(recorded: dict[str, np.ndarray], folder: Path) -> Path:
    """xlsr.pt, kmeans.npy, vocoder.pt, voices.json as a user downloads them."""
    for name in ("xlsr", "vocoder"):
        torch.save({"model": tensors_of(recorded, name)}, folder / f"{name}.pt")
    np.save(folder / "kmeans.npy", recorded["kmeans"])
    (folder / "voices.json").write_text(VOICES)
    return folder


def conversion(checkpoints: Path, out: Path, **changed) -> SpeechConvertJob:
    """The job that converts them; a key that is None is left out."""
    values = {
        "out": str(out),
        "xlsr": str(checkpoints / "xlsr.pt"),
        "kmeans": str(checkpoints / "kmeans.npy"),
        "vocoder": str(checkpoints / "vocoder.pt"),
        "voices": str(checkpoints / "voices.json"),
        "layer": 3,
        "heads": 4,
        **changed,
    }
    return SpeechConvertJob(**{key: value for key, value in values.items() if value is not None})


def convert(checkpoints: Path, out: Path, **changed) -> Path:
    """The converted speech artifact."""
    convert_speech(conversion(checkpoints, out, **changed))
    return out


def heard(recorded: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The recorded waves."""
    return [recorded[f"wave/{number}"].astype(np.float32) / 32768 for number in range(6)]
