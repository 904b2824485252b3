"""`slm speech convert`: published checkpoints to transformers folders and a speech artifact."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from slm.artifact import building, write_atomic, write_json, write_manifest
from slm.config.base import to_make
from slm.config.speech import SpeechConvertJob, XlsrConfig
from slm.errors import CheckpointError, DataError, from_os_error
from slm.speech.convert_names import rename_vocoder, rename_xlsr, require_same
from slm.speech.convert_pickle import read_checkpoint
from slm.speech.hifigan import VOCODER_FOLDER, VOICES_FILE, CodeHifiGan, require_fitting
from slm.speech.hifigan_voices import Voices
from slm.speech.xlsr import NETWORK_FOLDER, XlsrFeatures
from slm.speech.xlsr_files import WEIGHTS_FILE
from slm.speech.xlsr_network import NETWORK_CONFIG, Network

log = logging.getLogger(__name__)


def convert_speech(job: SpeechConvertJob) -> None:
    """Make the job's folder, unless it is up to date.

    Raises:
        DataError: a file is missing, the codebook has another width, or the vocoder speaks other units.
        CheckpointError: a checkpoint that is damaged, or has unknown or missing tensors.
        MachineError: no space or no permission.
    """
    inputs = to_make(job)
    if inputs is None:
        return
    with building(job.out) as folder:
        if job.extractor == "seamless":
            from slm.speech.seamless import describe_package

            describe_package(job, folder, inputs)
        else:
            _convert(job, folder)
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs)
    log.info("%s: made", job.out)


def _convert(job: SpeechConvertJob, folder: Path) -> None:
    units = convert_vocoder(job, folder / VOCODER_FOLDER) if job.vocoder is not None else None
    if job.xlsr is not None:
        convert_xlsr(job, folder / NETWORK_FOLDER)
    if job.kmeans is None:
        log.info("no centroids, so no speech artifact: folders for transformers alone")
        return
    config = XlsrConfig(
        model=str(folder / NETWORK_FOLDER), layer=job.layer, chunk_s=job.chunk_s, context_s=job.context_s,
        input=job.input, output=job.output,
    )  # fmt: skip
    source = XlsrFeatures(config, Network.load(config.model, config.layer, "cpu"))
    codebook = source.save(folder, read_centroids(job.kmeans), CodeHifiGan.name if job.vocoder else None)
    if units is not None:
        require_fitting(codebook.unit_set, units, job.upsample_rates, str(job.vocoder))
    log.info("%d units of layer %d, %g a second", codebook.count, job.layer, codebook.rate_hz)


def convert_xlsr(job: SpeechConvertJob, folder: Path) -> None:
    """Write the network up to `job.layer` as a `Wav2Vec2Model` folder.

    Sizes are read off the tensors; heads and strides, which they do not tell, are the job's.

    Raises:
        CheckpointError: unknown, missing or misshapen tensors in the whole checkpoint; too few layers.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    where = str(job.xlsr)
    found = rename_xlsr(read_checkpoint(where, ("model",)), where)
    config = Wav2Vec2Config(**network_shape(job, found, where))
    with torch.device("meta"):
        wanted = Wav2Vec2Model(config).state_dict()
    require_same(found, wanted, where)
    if job.layer > config.num_hidden_layers:
        raise CheckpointError(f"layer {job.layer} is wanted, the network has {config.num_hidden_layers}", where=where)
    kept = {name: tensor for name, tensor in found.items() if _layer_of(name) < job.layer}
    config.num_hidden_layers = job.layer
    config.architectures = ["Wav2Vec2Model"]
    _write_model(folder, config, kept)


def network_shape(job: SpeechConvertJob, found: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """What `Wav2Vec2Config` has to be told, read off the tensors; heads and strides are the job's.

    Raises:
        CheckpointError: a tensor that is needed is missing, or the job's numbers do not fit.
    """
    convolutions = [
        _shape(found, f"feature_extractor.conv_layers.{number}.conv.weight", where)
        for number in range(_count(found, r"feature_extractor\.conv_layers\.(\d+)\."))
    ]
    if len(convolutions) != len(job.conv_stride):
        raise CheckpointError(
            f"the network has {len(convolutions)} convolutions, conv_stride {len(job.conv_stride)} numbers", where=where
        )
    width = _shape(found, "feature_projection.projection.weight", where)[0]
    position = _shape(found, "encoder.pos_conv_embed.conv.parametrizations.weight.original1", where)
    if width % job.heads:
        raise CheckpointError(f"{job.heads} heads do not divide the network's width {width}", where=where)
    return {
        "hidden_size": width,
        "num_hidden_layers": _count(found, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": job.heads,
        "intermediate_size": _shape(found, "encoder.layers.0.feed_forward.intermediate_dense.weight", where)[0],
        "conv_dim": [shape[0] for shape in convolutions],
        "conv_kernel": [shape[2] for shape in convolutions],
        "conv_stride": list(job.conv_stride),
        "conv_bias": True,
        "num_conv_pos_embeddings": position[2],
        "num_conv_pos_embedding_groups": max(1, width // position[1]),
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "mask_time_prob": 0.0,
    }


def convert_vocoder(job: SpeechConvertJob, folder: Path) -> int:
    """Write the generator as a `SeamlessM4Tv2CodeHifiGan` folder with its voices.

    Returns:
        How many units it speaks.

    Raises:
        CheckpointError: unknown, missing or misshapen tensors.
        DataError: voices that it has no room for.
    """
    from transformers import SeamlessM4Tv2Config
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2CodeHifiGan

    where = str(job.vocoder)
    found = rename_vocoder(read_checkpoint(where, ("model", "generator")), where)
    config = SeamlessM4Tv2Config(**generator_shape(job, found, where))
    with torch.device("meta"):
        wanted = SeamlessM4Tv2CodeHifiGan(config).state_dict()
    require_same(found, wanted, where)
    config.architectures = ["SeamlessM4Tv2CodeHifiGan"]
    _write_model(folder, config, found)
    sizes = config.vocoder_num_langs, config.vocoder_num_spkrs
    voices = Voices.read(job.voices, *sizes) if job.voices is not None else Voices.default(*sizes)
    write_atomic(folder / VOICES_FILE, voices.to_json())
    return int(config.unit_hifi_gan_vocab_size)


def generator_shape(job: SpeechConvertJob, found: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """What `SeamlessM4Tv2Config` has to be told; its text side is not used.

    Raises:
        CheckpointError: a tensor that is needed is missing, or the job's numbers do not fit.
    """
    units, unit_width = _shape(found, "unit_embedding.weight", where)
    languages, language_width = _shape(found, "language_embedding.weight", where)
    speakers, speaker_width = _shape(found, "speaker_embedding.weight", where)
    blocks = len(job.resblock_dilations)
    ups = [
        _shape(found, f"hifi_gan.upsampler.{number}.weight", where)
        for number in range(_count(found, r"hifi_gan\.upsampler\.(\d+)\."))
    ]
    if len(ups) != len(job.upsample_rates):
        raise CheckpointError(
            f"the vocoder has {len(ups)} upsampling blocks, upsample_rates {len(job.upsample_rates)} numbers",
            where=where,
        )
    return {
        "unit_hifi_gan_vocab_size": units,
        "unit_embed_dim": unit_width,
        "vocoder_num_langs": languages,
        "lang_embed_dim": language_width,
        "vocoder_num_spkrs": speakers,
        "spkr_embed_dim": speaker_width,
        "upsample_initial_channel": _shape(found, "hifi_gan.conv_pre.weight", where)[0],
        "upsample_rates": list(job.upsample_rates),
        "upsample_kernel_sizes": [shape[2] for shape in ups],
        "resblock_kernel_sizes": [
            _shape(found, f"hifi_gan.resblocks.{number}.convs1.0.weight", where)[2] for number in range(blocks)
        ],
        "resblock_dilation_sizes": [list(each) for each in job.resblock_dilations],
        "variance_predictor_kernel_size": _shape(found, "dur_predictor.conv1.weight", where)[2],
    }


def read_centroids(path: str) -> np.ndarray:
    """The published codebook, float [units, width].

    Raises:
        DataError: no array of numbers there.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"not a readable array: {error}", where=path) from None
    if not isinstance(found, np.ndarray):
        raise DataError("several arrays, not one", where=path)
    return found


def _write_model(folder: Path, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """A Hugging Face folder: config.json and one file of weights.

    Raises:
        CheckpointError: a tensor that is not finite.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} is not finite", where=str(folder.name), mend="download the checkpoint again")
    try:
        folder.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, folder / WEIGHTS_FILE,
                  metadata={"format": "pt"})  # fmt: skip
    except OSError as error:
        raise from_os_error(error, f"writing {folder}") from error
    write_json(folder / NETWORK_CONFIG, config.to_diff_dict())


def _shape(found: Mapping[str, Tensor], name: str, where: str) -> tuple[int, ...]:
    if name not in found:
        raise CheckpointError(f"tensors are missing: {name}", where=where, mend="is the checkpoint complete?")
    return tuple(found[name].shape)


def _count(found: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in found if (match := re.match(pattern, name))})


def _layer_of(name: str) -> int:
    """Number of the layer a tensor belongs to, from 0; -1 for what comes before the layers."""
    match = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1
