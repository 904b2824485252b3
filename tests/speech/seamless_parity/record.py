"""Records what the original package computes, for `tests/speech/test_seamless_parity.py`.

    ENVIRONMENT/bin/python tests/speech/seamless_parity/record.py [FILE.npz]

runs in the environment that `slm speech env seamless ENVIRONMENT` makes (fairseq2 0.2.1, torch 2.2.2, the package at
the pinned commit). Small random models are built, saved, and loaded again by the package's own classes and loaders;
their weights, what they were given and what they gave go into `recorded.npz` beside this file.
"""

import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from fairseq2.models.utils.generic_loaders import update_dataclass
from fairseq2.models.wav2vec2 import create_wav2vec2_model, wav2vec2_archs
from seamless_communication.models.unit_extractor import UnitExtractor
from seamless_communication.models.vocoder import load_vocoder_model
from seamless_communication.models.vocoder.builder import create_vocoder_model, vocoder_archs

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "slm" / "speech"))

import seamless_job  # noqa: E402

LAYER = 3
ENCODER = {
    "model_dim": 32, "feature_dim": 16, "num_encoder_layers": 5, "num_encoder_attn_heads": 4, "ffn_inner_dim": 64,
    "feature_extractor_layer_descs": [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2,
    "pos_conv_kernel_size": 16, "num_pos_conv_groups": 4,
}  # fmt: skip
XLSR = {"encoder_config": ENCODER, "final_dim": 8, "quantized_dim": 8, "num_codebooks": 2, "num_codebook_entries": 4}
VOCODER = {
    "upsample_initial_channel": 32, "model_in_dim": 28, "num_embeddings": 50, "embedding_dim": 16,
    "dur_predictor_params": {
        "encoder_embed_dim": 16, "var_pred_hidden_dim": 16, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5
    },
    "lang_embedding_dim": 6, "num_langs": 3, "spkr_embedding_dim": 6, "num_spkrs": 5,
    "lang_spkr_idx_map": {
        "multilingual": {"deu": 0, "eng": 1, "fra": 2}, "multispkr": {"deu": [0], "eng": [3, 1], "fra": [2, 4]}
    },
}  # fmt: skip
LENGTHS = (16_000, 8_001, 5_999, 4_879, 12_345, 400)
"""Samples of the waves: even, odd, and odd where one sample more is one frame more (n = 79 modulo 320)."""


def noisy(model):
    """Every parameter at random: what starts at zero or one would hide a name that was mixed up."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("weight_g") or (any(part in name for part in ("norm", ".ln")) and name.endswith("weight")):
                value.copy_(1.0 + 0.3 * noise)
            else:
                spread = 0.3 if value.dim() < 2 else float(value[0].numel()) ** -0.5
                value.copy_(spread * noise)
    return model


def waves():
    """Sums of a few sines and some noise, int16."""
    chance = np.random.default_rng(3)
    found = []
    for number, length in enumerate(LENGTHS):
        time = np.arange(length) / 16_000
        wave = sum(np.sin(2 * np.pi * f * time * (1 + 0.2 * time)) for f in chance.uniform(80, 3000, 5))
        wave = (0.02 + 0.05 * number) * (wave + 0.3 * chance.standard_normal(length))
        found.append(np.clip(wave * 32767 / 3, -32768, 32767).astype(np.int16))
    return found


def record_xlsr(folder, out):
    """Features by the package's model, units by its `UnitExtractor`."""
    torch.manual_seed(0)
    config = wav2vec2_archs.get_config("xlsr2_1b_v2")
    update_dataclass(config, deepcopy(XLSR))  # it empties what it is given
    model = noisy(create_wav2vec2_model(config))
    torch.save({"model": model.state_dict()}, folder / "xlsr.pt")
    out.update({f"xlsr/{name}": value.numpy() for name, value in model.state_dict().items()})
    # centroids among the features of some noise, so that many of them are used
    np.save(folder / "kmeans.npy", np.zeros((2, 32), np.float32))
    first = extractor(folder)
    spread = layer_output(first, torch.randn(30_000, generator=torch.Generator().manual_seed(1)))
    samples = [layer_output(first, torch.from_numpy(wave / 32768).float()) for wave in waves()]
    joined = np.concatenate([*samples, spread])
    centroids = joined[np.random.default_rng(5).permutation(len(joined))[:50]] * 1.02 + 0.01
    np.save(folder / "kmeans.npy", centroids.astype(np.float32))
    out["kmeans"] = centroids.astype(np.float32)
    package = extractor(folder)
    for number, wave in enumerate(waves()):
        samples = torch.from_numpy(wave / 32768).float()
        out[f"wave/{number}"] = wave
        out[f"features/{number}"] = layer_output(package, samples)
        out[f"units/{number}"] = package.predict(samples, LAYER - 1).numpy().astype(np.int32)


def extractor(folder):
    """The package's extractor on the small checkpoint."""
    about = seamless_job.card("small", "wav2vec2", "xlsr2_1b_v2", folder / "xlsr.pt", XLSR)
    return UnitExtractor(about, (folder / "kmeans.npy").as_uri(), device=torch.device("cpu"))


def layer_output(package, samples):
    """What the package hands to its k-means for a wave, caught on the way: all steps before it are the package's."""
    caught = []
    handle = package.kmeans_model.register_forward_pre_hook(lambda module, given: caught.append(given[0].clone()))
    package.predict(samples, LAYER - 1)
    handle.remove()
    return caught[0].numpy()


def record_vocoder(folder, out):
    """Waves with predicted durations and without, in several voices."""
    torch.manual_seed(1)
    config = vocoder_archs.get_config("base")
    update_dataclass(config, deepcopy(VOCODER))
    model = noisy(create_vocoder_model(config))
    with torch.no_grad():  # durations of one to several periods, and a wave that neither rests nor clips
        model.code_generator.dur_predictor.proj.bias.zero_()
        model.code_generator.conv_post.bias.zero_()
        model.code_generator.conv_post.weight_g.fill_(0.5)
    torch.save({"model": model.state_dict()}, folder / "vocoder.pt")
    out.update({f"vocoder/{name}": value.numpy() for name, value in model.state_dict().items()})
    about = seamless_job.card("small_vocoder", "vocoder_code_hifigan", "base", folder / "vocoder.pt", VOCODER)
    package = load_vocoder_model(about, device=torch.device("cpu"), dtype=torch.float32).eval()
    cases = [([3, 1, 4, 1, 5, 9, 2, 6], "eng", -1), ([0, 49, 7], "fra", 4), ([11], "deu", -1)]
    for number, (units, language, speaker) in enumerate(cases):
        out[f"said/{number}"] = np.array(units, np.int64)
        out[f"voice/{number}"] = np.array([language, str(speaker)])
        for kind, predicted in (("removed", True), ("kept", False)):
            with torch.inference_mode():
                wave = package(torch.tensor(units), language, speaker, dur_prediction=predicted)
            out[f"spoken/{kind}/{number}"] = wave.numpy().reshape(-1)


def main(target):
    """Write the arrays to `target`."""
    out = {"layer": np.array(LAYER), "heads": np.array(ENCODER["num_encoder_attn_heads"])}
    with tempfile.TemporaryDirectory() as folder:
        record_xlsr(Path(folder), out)
        record_vocoder(Path(folder), out)
    np.savez_compressed(target, **out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "recorded.npz")
