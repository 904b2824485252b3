"""Architectures in the words of the original package, read off the checkpoints' tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from slm.config.speech import SpeechConvertJob
from slm.speech.convert import generator_shape, network_shape
from slm.speech.convert_names import rename_vocoder, rename_xlsr
from slm.speech.convert_pickle import read_checkpoint
from slm.speech.hifigan import require_fitting
from slm.speech.hifigan_voices import Voices
from slm.speech.xlsr import require_centroids
from slm.tokens.vocabulary import UnitSet


def xlsr_config(job: SpeechConvertJob, centroids: np.ndarray) -> dict[str, Any]:
    """What differs from the package's `xlsr2_1b_v2`: fairseq2's `Wav2Vec2Config` as a dictionary.

    Raises:
        CheckpointError: unknown or missing tensors.
        DataError: centroids of another width.
    """
    where = str(job.xlsr)
    tensors = read_checkpoint(where, ("model",))
    ours = network_shape(job, rename_xlsr(tensors, where), where)
    require_centroids(centroids, ours["hidden_size"], str(job.kmeans))
    found: dict[str, Any] = {
        "encoder_config": {
            "model_dim": ours["hidden_size"],
            "feature_dim": ours["conv_dim"][-1],
            "num_encoder_layers": ours["num_hidden_layers"],
            "num_encoder_attn_heads": ours["num_attention_heads"],
            "ffn_inner_dim": ours["intermediate_size"],
            "feature_extractor_layer_descs": [
                list(each) for each in zip(ours["conv_dim"], ours["conv_kernel"], ours["conv_stride"], strict=True)
            ],
            "pos_conv_kernel_size": ours["num_conv_pos_embeddings"],
            "num_pos_conv_groups": ours["num_conv_pos_embedding_groups"],
        }
    }
    # its loader wants the tensors of pre-training too, and in the right sizes
    target = next((tensors[name] for name in ("final_target_proj.weight", "project_q.weight") if name in tensors), None)
    entries = next((tensors[name] for name in ("quantizer.entries", "quantizer.vars") if name in tensors), None)
    if target is not None and entries is not None:
        books = max(1, target.shape[1] // entries.shape[2])
        found.update(
            final_dim=target.shape[0],
            quantized_dim=target.shape[1],
            num_codebooks=books,
            num_codebook_entries=entries.shape[1] // books,
        )
    return found


def vocoder_config(job: SpeechConvertJob, units: UnitSet) -> dict[str, Any]:
    """The package's `VocoderConfig` as a dictionary.

    Raises:
        CheckpointError: unknown or missing tensors.
        DataError: it speaks other units, or the voices do not fit.
    """
    where = str(job.vocoder)
    ours = generator_shape(job, rename_vocoder(read_checkpoint(where, ("model", "generator")), where), where)
    require_fitting(units, ours["unit_hifi_gan_vocab_size"], job.upsample_rates, where)
    sizes = ours["vocoder_num_langs"], ours["vocoder_num_spkrs"]
    voices = Voices.read(job.voices, *sizes) if job.voices is not None else Voices.default(*sizes)
    width = ours["unit_embed_dim"]
    return {
        **{key: ours[key] for key in ("upsample_rates", "upsample_kernel_sizes", "upsample_initial_channel")},
        **{key: ours[key] for key in ("resblock_kernel_sizes", "resblock_dilation_sizes")},
        "model_in_dim": width + ours["lang_embed_dim"] + ours["spkr_embed_dim"],
        "num_embeddings": ours["unit_hifi_gan_vocab_size"],
        "embedding_dim": width,
        "dur_predictor_params": {
            "encoder_embed_dim": width,
            "var_pred_hidden_dim": width,
            "var_pred_kernel_size": ours["variance_predictor_kernel_size"],
            "var_pred_dropout": 0.5,
        },
        "lang_embedding_dim": ours["lang_embed_dim"],
        "num_langs": ours["vocoder_num_langs"],
        "spkr_embedding_dim": ours["spkr_embed_dim"],
        "num_spkrs": ours["vocoder_num_spkrs"],
        "lang_spkr_idx_map": {
            "multilingual": {name: number for number, name in enumerate(voices.languages)},
            "multispkr": {name: list(speakers) for name, speakers in voices.languages.items()},
        },
    }
