"""The CLIP tower against transformers' own, and what its config and folder may hold."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, SpecError, UnsupportedModelError
from mllm_export.export.part_module import encoder_module
from mllm_export.export.parts import ENCODERS
from mllm_export.weights import Take, WeightMap

CLIP = ENCODERS["clip_vit"]
TINY = CLIP.tiny()

# The published vision_config of openai/clip-vit-large-patch14-336, less keys nothing reads.
PUBLISHED = {
    "hidden_act": "quick_gelu",
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
IMAGE = replace(TINY.image, size_px=336)


def module(spec, tower):
    weights = tower.state_dict()
    return encoder_module(CLIP, spec, lambda name: weights[name].numpy())


@pytest.mark.parametrize("select_layer", [-1, -2, -4, 0, 1, 3])
@pytest.mark.parametrize("keep_prefix", [False, True], ids=["patch", "cls_patch"])
def test_features_are_the_selected_hidden_state(vision, error, select_layer, keep_prefix):
    original = vision("linear", select_layer=select_layer, keep_prefix=keep_prefix)
    pixels = original.pixels()
    ours = module(original.encoder, original.tower)(pixels)
    theirs = original.features(pixels)
    assert ours.shape == theirs.shape
    assert error(ours.numpy(), theirs.numpy()) < 2e-5


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_activation_follows_the_config(vision, error, activation):
    original = vision("linear", activation=activation)
    pixels = original.pixels()
    theirs = original.features(pixels).numpy()
    other = "gelu" if activation == "quick_gelu" else "quick_gelu"
    right = module(original.encoder, original.tower)(pixels).numpy()
    wrong = module(replace(original.encoder, activation=other), original.tower)(pixels).numpy()
    assert error(right, theirs) < 2e-5
    assert error(wrong, theirs) > 1e-3


def test_a_picture_that_is_no_whole_number_of_patches_loses_its_rim(vision, error):
    image = replace(TINY.image, size_px=50)
    original = vision("linear", image=image, patch_px=8)
    pixels = original.pixels()
    ours = module(original.encoder, original.tower)(pixels)
    assert ours.shape[1] == 36
    assert error(ours.numpy(), original.features(pixels).numpy()) < 2e-5


@pytest.mark.parametrize(
    ("fault", "at_least"),
    [("eps", 1e-4), ("late", 0.05), ("positions", 0.05), ("norm", 0.05), ("kept", 0.05)],
)
def test_a_planted_fault_shows(vision, error, fault, at_least):
    """The bound of the tests above is far below what each likely mistake causes."""
    original = vision("linear")
    spec, tower = original.encoder, original.tower
    pixels = original.pixels()
    theirs = original.features(pixels).numpy()
    weights = {name: value.clone() for name, value in tower.state_dict().items()}
    if fault == "eps":
        spec = replace(spec, norm_eps=1e-3)
    if fault == "late":
        spec = replace(spec, select_layer=-1)
    if fault == "positions":
        name = "vision_model.embeddings.position_embedding.weight"
        side = spec.grid
        rows = weights[name][1:].reshape(side, side, -1).transpose(0, 1).flatten(0, 1)
        weights[name] = torch.cat([weights[name][:1], rows])
    if fault == "norm":
        first, second = (f"vision_model.encoder.layers.0.layer_norm{n}.weight" for n in (1, 2))
        weights[first], weights[second] = weights[second], weights[first]
    if fault == "kept":
        spec = replace(spec, keep_prefix=True)
    ours = encoder_module(CLIP, spec, lambda name: weights[name].numpy())(pixels).numpy()
    assert error(ours[:, : theirs.shape[1]], theirs) > at_least


def test_half_precision_sources_are_widened_exactly(vision, error):
    original = vision("linear")
    tower = original.tower.bfloat16().float()
    bits = {n: v.bfloat16().view(torch.uint16).numpy() for n, v in tower.state_dict().items()}
    import ml_dtypes

    read = encoder_module(CLIP, original.encoder, lambda n: bits[n].view(ml_dtypes.bfloat16))
    pixels = original.pixels()
    assert error(read(pixels).numpy(), original.features(pixels).numpy()) < 2e-5


def test_published_shapes_give_the_known_counts():
    spec = CLIP.read_spec(Config(PUBLISHED, "config.json"), IMAGE, -2, False)
    used = sum(int(np.prod(shape)) for shape in CLIP.parameters(spec).values())
    # Source: the published checkpoint; 23 of 24 layers run.
    assert (used, spec.tokens_out, spec.run_layers) == (290_909_184, 576, 23)


def test_a_whole_clip_config_is_read_through_its_vision_part():
    nested = {"model_type": "clip", "projection_dim": 768, "vision_config": PUBLISHED}
    direct = CLIP.read_spec(Config(PUBLISHED, "a"), IMAGE, -2, False)
    assert CLIP.read_spec(Config(nested, "b"), IMAGE, -2, False) == direct


def test_what_transformers_saves_is_read_back():
    vision = CLIPVisionConfig(**{k: v for k, v in PUBLISHED.items() if k != "model_type"})
    whole = CLIPConfig(vision_config=vision.to_dict())
    direct = CLIP.read_spec(Config(PUBLISHED, "a"), IMAGE, -2, False)
    for config in (vision, whole):
        saved = json.loads(config.to_json_string())
        assert CLIP.read_spec(Config(saved, "b"), IMAGE, -2, False) == direct


def test_absent_keys_mean_what_they_mean_to_transformers():
    full = CLIPVisionConfig().to_dict()
    known = CLIP.read_spec(Config(full, "a"), CLIP.image(Config(full, "a"), "pad"), -2, False)
    assert known.image.size_px == full["image_size"]
    for key in PUBLISHED:
        lean = Config({name: value for name, value in full.items() if name != key}, "b")
        assert CLIP.read_spec(lean, CLIP.image(lean, "pad"), -2, False) == known, key


@pytest.mark.parametrize(
    ("changes", "error_type", "words"),
    [
        ({"hidden_size": "wide"}, CheckpointError, "key 'hidden_size' is 'wide'"),
        ({"hidden_act": "relu"}, UnsupportedModelError, "hidden_act 'relu'"),
        ({"image_size": 224}, CheckpointError, "image_size is 224, the preprocessing makes 336"),
        ({"num_attention_heads": 15}, SpecError, "1024 is not a multiple of 15 heads"),
        ({"num_channels": 4}, UnsupportedModelError, "num_channels must be 3"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(changes, error_type, words):
    with pytest.raises(error_type, match=words):
        CLIP.read_spec(Config({**PUBLISHED, **changes}, "config.json"), IMAGE, -2, False)


def test_a_select_layer_past_the_tower_is_refused():
    with pytest.raises(SpecError, match="select layer -26 of a tower with 24 layers"):
        CLIP.read_spec(Config(PUBLISHED, "config.json"), IMAGE, -26, False)


@pytest.mark.parametrize("select_layer", [-2, -1, 0])
def test_every_tensor_of_a_clip_folder_is_taken_or_dropped_with_a_reason(select_layer):
    spec = replace(TINY, select_layer=select_layer)
    vision = {
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "image_size": spec.image.size_px,
        "patch_size": spec.patch_px,
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found["vision_model.embeddings.position_ids"] = (1, 577)  # in files of older versions
    takes = tuple(
        Take(part="tower", parameter=name, source=name, shape=shape)
        for name, shape in CLIP.parameters(spec).items()
    )
    dropped = WeightMap(takes=takes, drops=CLIP.drops(spec)).resolve(found)
    assert len(dropped) + len(takes) == len(found)
    assert all(row.why for row in dropped)
    unused = {row.source for row in dropped if row.source.startswith("vision_model.encoder")}
    assert {name.split(".")[3] for name in unused} == {
        str(layer) for layer in range(spec.run_layers, spec.layers)
    }
