"""FLOPs against torch's own counter, shapes against transformers' own models."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slm.config.stage import LoraConfig, ModelConfig
from slm.errors import ConfigError
from slm.model.load import load_base
from slm.model.lora import attach, causal_lm, whole_modules
from slm.plan.devices import find_device, parse_gpus
from slm.plan.flops import cost_of, pairs_in
from slm.plan.shapes import ModelShape, Weight, base_weights, expected_weights, read_shape, training_weights

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "v_proj", "down_proj"])
ALSO = [r"model\.layers\.1\.self_attn\.(q|k)_proj"]


def weights_of(lm):
    found = set()
    for name, parameter in lm.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")
        found.add(Weight(plain, tuple(parameter.shape), parameter.requires_grad))
    return found


def model_of(base, train="lora", vocabulary="full", also=()):
    config = ModelConfig(base=str(base), train=train, vocabulary=vocabulary, lora=LORA, also_train=list(also))
    lm = load_base(base, attention="eager").train()
    if train == "lora":
        lm = attach(lm, LORA, vocabulary=vocabulary == "full", whole=whole_modules(lm, also))
    return lm, config


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("train", "vocabulary", "also"), [("lora", "full", ()), ("lora", "full", ALSO), ("full", "full", ())]
)
def test_a_step_costs_what_torch_counts(pico_base, pico_tied_base, tied, train, vocabulary, also):
    base = pico_tied_base if tied else pico_base
    lm, config = model_of(base, train, vocabulary, also)
    inner, tokens = causal_lm(lm), 24
    where = torch.arange(5, 20)
    with FlopCounterMode(display=False) as counter:
        hidden = inner.model(input_ids=torch.arange(4, 4 + tokens)[None], use_cache=False).last_hidden_state[0]
        inner.lm_head(hidden[where]).square().sum().backward()
    shape = read_shape(base)
    cost = cost_of(training_weights(base_weights(base, shape), config), shape)
    expected = cost.model(tokens, len(where), tokens**2)  # eager attention computes all pairs
    rope = 3 * 2 * shape.head_width // 2 * tokens  # transformers makes the angles by a product
    assert counter.get_total_flops() == pytest.approx(expected, abs=rope)


def test_the_first_layers_of_a_frozen_table_need_no_gradient(pico_base):
    config = ModelConfig(base="b", vocabulary="frozen", lora=LORA)
    shape = read_shape(pico_base)
    weights = training_weights(base_weights(pico_base, shape), config)
    last = [w for w in weights if w.layer != 0 or not w.trains]
    assert cost_of(last, shape).token < cost_of(weights, shape).token
    assert cost_of(weights, shape).label == 4 * shape.rows * shape.width


def test_recomputation_is_hardware_and_not_model(pico_base):
    shape = read_shape(pico_base)
    weights = training_weights(base_weights(pico_base, shape), ModelConfig(base="b", train="full"))
    plain, again = cost_of(weights, shape), cost_of(weights, shape, 1.0)
    assert plain.hardware(10, 5, 55) == plain.model(10, 5, 55) == again.model(10, 5, 55)
    assert again.hardware(10, 0, 55) == pytest.approx(plain.model(10, 0, 55) * 4 / 3)


def test_lora_on_8b_is_four_and_not_six_operations_a_weight():
    values = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    shape = ModelShape.from_config({**values, "num_key_value_heads": 8, "vocab_size": 138256})
    model = ModelConfig(base="b", lora=LoraConfig(rank=64, targets=["q_proj", "k_proj", "v_proj"]))
    cost = cost_of(training_weights(expected_weights(shape), model), shape)
    every_label = cost.token + cost.label + cost.pair * 2048
    assert every_label == pytest.approx(34.8e9, rel=0.03)
    full = cost_of(training_weights(expected_weights(shape), ModelConfig(base="b", train="full")), shape)
    assert full.token + full.label + full.pair * 2048 == pytest.approx(48.5e9, rel=0.03)


@pytest.mark.parametrize("tied", [False, True])
def test_names_and_shapes_are_the_models_own(pico_base, pico_tied_base, tied):
    base = pico_tied_base if tied else pico_base
    lm, config = model_of(base, also=ALSO)
    shape = read_shape(base)
    assert {*training_weights(base_weights(base, shape), config)} == weights_of(lm)
    assert expected_weights(shape) == base_weights(base, shape)


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
def test_sizes_alone_give_the_weights_of_qwen(kind):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    shape = ModelShape.from_config(config.to_dict())
    assert expected_weights(shape) == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_pairs():
    assert pairs_in([1, 3]) == 1 + 6


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2450),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_cards_are_known_by_their_names(name, peak):
    device = find_device(name)
    assert device is not None and device.peak_tflops == peak
    assert find_device("NVIDIA GeForce GTX 1080") is None


def test_what_gpus_there_are():
    count, device = parse_gpus("8x80GB")
    assert (count, device.memory_gb) == (8, 80) and "A100" in device.name
    assert parse_gpus("2xH200")[1].memory_gb == 141
    assert parse_gpus("4x13GB")[1].memory_gb == 13
    for wrong in ("80GB", "0xH100", "8xFoo"):
        with pytest.raises(ConfigError, match="--gpus"):
            parse_gpus(wrong)
