"""SigLIP's tower against transformers' own, and each known trap planted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.clip_images import read_image_spec
from mllm_export.export.part_module import encoder_module
from mllm_export.export.parts import ENCODERS
from mllm_export.export.tower_choice import encoder_for
from mllm_export.weights import Take, WeightMap

SIGLIP = ENCODERS["siglip"]
TINY = SIGLIP.tiny()
# The vision_config of google/siglip-so400m-patch14-384, as published.
SO400M = {
    "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
    "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
    "patch_size": 14,
}  # fmt: skip


def config_of(spec):
    return {
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "image_size": spec.image.size_px,
        "patch_size": spec.patch_px,
    }


def original(spec, rough):
    model = SiglipVisionModel(SiglipVisionConfig(**config_of(spec)))
    return rough(model).eval()


def pixels_of(spec):
    side = spec.image.size_px
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(model, spec, pixels):
    return model(pixels, output_hidden_states=True).hidden_states[spec.select_layer].numpy()


def ours(spec, weights, pixels):
    return encoder_module(SIGLIP, spec, lambda n: weights[n].numpy())(pixels).detach().numpy()


@pytest.mark.parametrize("select_layer", [-1, -2, 0, 1])
def test_features_are_the_selected_hidden_state(rough_weights, error, select_layer):
    spec = replace(TINY, select_layer=select_layer)
    model = original(spec, rough_weights)
    pixels = pixels_of(spec)
    found = ours(spec, model.state_dict(), pixels)
    assert error(found, features(model, spec, pixels)) < 2e-5


def quieten(module):
    """Values so small that a norm's epsilon is a good part of their variance."""
    with torch.no_grad():
        for value in module.parameters():
            value *= 0.01


_FIRST = "vision_model.encoder.layers.0."
FAULTS = {
    "erf for tanh": (lambda s, w: (replace(s, activation="gelu"), w), 1e-4),
    "eps of 1e-5": (lambda s, w: (replace(s, norm_eps=1e-5), w), 1e-3),
    "patch bias dropped": (
        lambda s, w: (
            s,
            {**w, "vision_model.embeddings.patch_embedding.bias": torch.zeros(s.width)},
        ),
        1e-2,
    ),
    "a layer too many": (lambda s, w: (replace(s, select_layer=-1), w), 1e-2),
    "heads permuted": (
        lambda s, w: (
            s,
            {**w, f"{_FIRST}self_attn.v_proj.weight": w[f"{_FIRST}self_attn.v_proj.weight"]
             .roll(16, 0)},
        ),
        1e-2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(rough_weights, error, fault):
    plant, at_least = FAULTS[fault]
    model = original(TINY, rough_weights)
    quieten(model.vision_model.embeddings)
    pixels = pixels_of(TINY)
    spec, weights = plant(TINY, dict(model.state_dict()))
    found = ours(spec, weights, pixels)
    assert error(found, features(model, TINY, pixels)) > at_least


def test_published_shapes_of_so400m():
    spec = SIGLIP.read_spec(
        Config(SO400M, "a"), SIGLIP.image(Config(SO400M, "a"), "pad"), -2, False
    )
    with torch.device("meta"):
        model = SiglipVisionModel(SiglipVisionConfig(**SO400M))
    theirs = {n: tuple(p.shape) for n, p in model.named_parameters()}
    found = dict(SIGLIP.parameters(spec))
    assert {n: theirs[n] for n in found} == found
    assert (spec.tokens_out, spec.run_layers, spec.norm_eps) == (729, 26, 1e-6)


def test_absent_keys_mean_what_they_mean_to_transformers():
    bare = Config({"model_type": "siglip_vision_model"}, "a")
    spec = SIGLIP.read_spec(bare, SIGLIP.image(bare, "crop"), -1, False)
    known = SiglipVisionConfig()
    assert (spec.width, spec.layers, spec.heads, spec.mlp_width, spec.patch_px) == (
        known.hidden_size, known.num_hidden_layers, known.num_attention_heads,
        known.intermediate_size, known.patch_size,
    )  # fmt: skip
    assert (spec.activation, spec.norm_eps) == (known.hidden_act, known.layer_norm_eps)
    assert spec.image.size_px == known.image_size


def test_every_tensor_of_a_siglip_folder_is_taken_or_dropped_with_a_reason():
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 40}  # fmt: skip
    model = SiglipModel(SiglipConfig(vision_config=config_of(TINY), text_config=text))
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    takes = tuple(
        Take(part="tower", parameter=n, source=n, shape=s)
        for n, s in SIGLIP.parameters(TINY).items()
    )
    dropped = WeightMap(takes=takes, drops=SIGLIP.drops(TINY)).resolve(found)
    assert len(takes) + len(dropped) == len(found)
    assert {"vision_model.head.probe", "logit_bias"} <= {row.source for row in dropped}


@pytest.mark.parametrize("model_type", ["siglip", "siglip_vision_model"])
def test_siglip_configs_are_claimed(model_type):
    assert encoder_for(Config({"model_type": model_type}, "config.json")) is SIGLIP


@pytest.mark.parametrize(("asked", "fit"), [("crop", "stretch"), ("pad", "pad")])
def test_the_processor_stretches_what_was_not_padded(tmp_path, asked, fit):
    (tmp_path / "preprocessor_config.json").write_text(
        '{"do_normalize": true, "do_rescale": true, "do_resize": true, "resample": 3,'
        '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],'
        '"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}}'
    )
    own = read_image_spec(tmp_path, asked)
    assert own == SIGLIP.image(Config({"image_size": 384}, "a"), asked)
    assert own is not None
    assert (own.size_px, own.fit, own.pad_rgb) == (384, fit, (127, 127, 127))


@pytest.mark.parametrize(
    ("changes", "error_type", "words"),
    [
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act 'gelu'"),
        ({"image_size": 224}, CheckpointError, "image_size is 224, the preprocessing makes 384"),
        ({"num_channels": 1}, UnsupportedModelError, "num_channels must be 3"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(changes, error_type, words):
    image = SIGLIP.image(Config(SO400M, "a"), "pad")
    with pytest.raises(error_type, match=words):
        SIGLIP.read_spec(Config({**SO400M, **changes}, "config.json"), image, -2, False)
