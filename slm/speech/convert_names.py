"""How the published checkpoints name their tensors, and what transformers calls them.

XLS-R comes in two namings, fairseq's and fairseq2's; the vocoder's names come with or without `code_generator.`.
Every rule is a pattern and what takes its place; a name that no rule knows is an error, and so is one that nothing
gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from slm.errors import CheckpointError

Rules = Sequence[tuple[str, str]]

_WB = r"(weight|bias)"
_FRONT = r"encoder_frontend\."
_NORMED = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
FAIRSEQ2_XLSR: Rules = (
    (rf"{_FRONT}feature_extractor\.layers\.(\d+)\.(conv|layer_norm)\.{_WB}", r"feature_extractor.conv_layers.\1.\2.\3"),
    (rf"{_FRONT}post_extract_layer_norm\.{_WB}", r"feature_projection.layer_norm.\1"),
    (rf"{_FRONT}model_dim_proj\.{_WB}", r"feature_projection.projection.\1"),
    (rf"{_FRONT}pos_encoder\.conv\.bias", r"encoder.pos_conv_embed.conv.bias"),
    (rf"{_FRONT}pos_encoder\.conv\.weight_g", f"{_NORMED}0"),
    (rf"{_FRONT}pos_encoder\.conv\.weight_v", f"{_NORMED}1"),
    (rf"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.{_WB}", r"encoder.layers.\1.attention.\2_proj.\3"),
    (rf"encoder\.layers\.(\d+)\.self_attn\.output_proj\.{_WB}", r"encoder.layers.\1.attention.out_proj.\2"),
    (rf"encoder\.layers\.(\d+)\.self_attn_layer_norm\.{_WB}", r"encoder.layers.\1.layer_norm.\2"),
    (rf"encoder\.layers\.(\d+)\.ffn\.inner_proj\.{_WB}", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (rf"encoder\.layers\.(\d+)\.ffn\.output_proj\.{_WB}", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (rf"encoder\.layers\.(\d+)\.ffn_layer_norm\.{_WB}", r"encoder.layers.\1.final_layer_norm.\2"),
    (rf"encoder\.layer_norm\.{_WB}", r"encoder.layer_norm.\1"),
)  # fmt: skip
FAIRSEQ_XLSR: Rules = (
    (rf"feature_extractor\.conv_layers\.(\d+)\.0\.{_WB}", r"feature_extractor.conv_layers.\1.conv.\2"),
    (rf"feature_extractor\.conv_layers\.(\d+)\.2\.1\.{_WB}", r"feature_extractor.conv_layers.\1.layer_norm.\2"),
    (rf"layer_norm\.{_WB}", r"feature_projection.layer_norm.\1"),
    (rf"post_extract_proj\.{_WB}", r"feature_projection.projection.\1"),
    (r"encoder\.pos_conv\.0\.bias", r"encoder.pos_conv_embed.conv.bias"),
    (r"encoder\.pos_conv\.0\.weight_g", f"{_NORMED}0"),
    (r"encoder\.pos_conv\.0\.weight_v", f"{_NORMED}1"),
    (rf"encoder\.layers\.(\d+)\.self_attn\.([qkv]|out)_proj\.{_WB}", r"encoder.layers.\1.attention.\2_proj.\3"),
    (rf"encoder\.layers\.(\d+)\.self_attn_layer_norm\.{_WB}", r"encoder.layers.\1.layer_norm.\2"),
    (rf"encoder\.layers\.(\d+)\.fc1\.{_WB}", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (rf"encoder\.layers\.(\d+)\.fc2\.{_WB}", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (rf"encoder\.layers\.(\d+)\.final_layer_norm\.{_WB}", r"encoder.layers.\1.final_layer_norm.\2"),
    (rf"encoder\.layer_norm\.{_WB}", r"encoder.layer_norm.\1"),
)  # fmt: skip
PRETRAINING = r"(quantizer|final_proj|final_target_proj|project_q|masker)\..*|mask_emb"
"""Tensors that serve the network's pre-training alone: known, and left out."""
VOCODER_PREFIX = "code_generator."
_CONVOLUTIONS = r"(weight_g|weight_v|weight|bias)"
VOCODER: Rules = (
    (r"dict\.weight", r"unit_embedding.weight"),
    (r"spkr\.weight", r"speaker_embedding.weight"),
    (r"lang\.weight", r"language_embedding.weight"),
    (rf"(conv_pre|conv_post)\.{_CONVOLUTIONS}", r"hifi_gan.\1.\2"),
    (rf"ups\.(\d+)\.{_CONVOLUTIONS}", r"hifi_gan.upsampler.\1.\2"),
    (rf"resblocks\.(\d+)\.(convs[12])\.(\d+)\.{_CONVOLUTIONS}", r"hifi_gan.resblocks.\1.\2.\3.\4"),
    (rf"dur_predictor\.(conv[12])\.0\.{_WB}", r"dur_predictor.\1.\2"),
    (rf"dur_predictor\.(ln1|ln2|proj)\.{_WB}", r"dur_predictor.\1.\2"),
)


def rename(
    tensors: Mapping[str, torch.Tensor], rules: Rules, where: str, *, known: str | None = None
) -> dict[str, torch.Tensor]:
    """Every tensor under its new name.

    Args:
        tensors: by the names of the checkpoint.
        rules: what takes the place of what.
        where: the checkpoint, for errors.
        known: pattern of names that are left out.

    Raises:
        CheckpointError: names that no rule knows, or two tensors for one name.
    """
    found: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        matches = [match.expand(new) for old, new in rules if (match := re.fullmatch(old, name))]
        if not matches:
            if known is None or not re.fullmatch(known, name):
                unknown.append(name)
            continue
        if matches[0] in found:
            raise CheckpointError(f"two tensors for {matches[0]}, one of them {name}", where=where)
        found[matches[0]] = tensor
    if unknown:
        raise CheckpointError(
            f"unknown tensors: {shorten(unknown)}", where=where, mend="is it another version of the checkpoint?"
        )
    return found


def rename_xlsr(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """XLS-R as transformers names it, from either naming.

    Raises:
        CheckpointError: see `rename`.
    """
    new = any(name.startswith("encoder_frontend.") for name in tensors)
    return rename(tensors, FAIRSEQ2_XLSR if new else FAIRSEQ_XLSR, where, known=PRETRAINING)


def rename_vocoder(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """The code HiFi-GAN as transformers names it, with the weight norm of its convolutions worked out.

    w = g · v / ‖v‖, the norm over all but the first dimension (Salimans and Kingma, arXiv 1602.07868).

    Raises:
        CheckpointError: see `rename`; or one half of a weight-normed weight without the other.
    """
    plain = {name.removeprefix(VOCODER_PREFIX): tensor for name, tensor in tensors.items()}
    found = rename(plain, VOCODER, where)
    for name in [name for name in found if name.endswith(".weight_v")]:
        stem = name.removesuffix("weight_v")
        if f"{stem}weight_g" not in found:
            raise CheckpointError(f"missing tensor: {stem}weight_g", where=where)
        direction, size = found.pop(name), found.pop(f"{stem}weight_g")
        found[f"{stem}weight"] = torch._weight_norm(direction.float(), size.float(), 0)
    left = [name for name in found if name.endswith(".weight_g")]
    if left:
        raise CheckpointError(f"missing tensor: {left[0].removesuffix('weight_g')}weight_v", where=where)
    return found


def require_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str) -> None:
    """The tensors that were found are those that the model has: same names, same shapes.

    Raises:
        CheckpointError: names what is missing, left over or of another shape.
    """
    for fault, names in (("missing", wanted.keys() - found.keys()), ("left over", found.keys() - wanted.keys())):
        if names:
            raise CheckpointError(
                f"tensors are {fault}: {shorten(sorted(names))}", where=where, mend="is the checkpoint complete?"
            )
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(found[name].shape)}, the model {tuple(tensor.shape)}", where=where
            )


def shorten(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
