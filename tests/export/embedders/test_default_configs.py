"""A config.json that leaves out defaults is read as transformers reads it.

google/siglip-base-patch16-224 lists nothing but the model types of its two towers.
"""

from __future__ import annotations

import json

import pytest
from embedder_builds import read
from transformers import CLIPConfig, SiglipConfig

from mllm_export.export.random_embedder import write_clip_tokenizer, write_siglip_tokenizer


def sizes(width, layers, heads, **more):
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        **more,
    }


# Source: openai/clip-vit-*, laion/CLIP-ViT-H-14-laion2B-s32B-b79K, google/siglip-*.
MODELS = {
    "CLIP B/32, all of it default": CLIPConfig(),
    "CLIP L/14-336": CLIPConfig(
        vision_config=sizes(1024, 24, 16, patch_size=14, image_size=336, projection_dim=768),
        text_config=sizes(768, 12, 12, projection_dim=768),
        projection_dim=768,
    ),
    "CLIP H/14, another activation": CLIPConfig(
        vision_config=sizes(1280, 32, 16, patch_size=14, hidden_act="gelu"),
        text_config=sizes(1024, 24, 16, hidden_act="gelu"),
        projection_dim=1024,
    ),
    "SigLIP base, all of it default": SiglipConfig(),
    "SigLIP so400m": SiglipConfig(
        vision_config=sizes(1152, 27, 16, patch_size=14, image_size=384),
        text_config=sizes(1152, 27, 16),
    ),
    "SigLIP, texts of another length and epsilon": SiglipConfig(
        vision_config={"layer_norm_eps": 1e-5, "image_size": 256},
        text_config={"layer_norm_eps": 1e-5, "max_position_embeddings": 16},
    ),
}


def lean(config):
    """What differs from the class's own defaults, and the model types."""
    default = type(config)().to_dict()
    found = {}
    for key, value in config.to_dict().items():
        if key in config.sub_configs:
            found[key] = lean(getattr(config, key))
        elif key == "model_type" or value != default.get(key):
            found[key] = value
    return found


FORMS = {
    "in full": lambda config: json.loads(config.to_json_string(use_diff=False)),
    "as transformers saves it": lambda config: json.loads(config.to_json_string()),
    "with nothing but what differs": lean,
    "without sections that hold nothing else": lambda config: {
        key: value
        for key, value in lean(config).items()
        if not isinstance(value, dict) or set(value) - {"model_type"}
    },
}


def spec_of(folder, plain):
    folder.mkdir()
    write = {"clip": write_clip_tokenizer, "siglip": write_siglip_tokenizer}
    write[plain["model_type"]](folder)
    (folder / "config.json").write_text(json.dumps(plain))
    return read(folder)[1].spec


def layers_of(config):
    return (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
        config.hidden_act,
        config.layer_norm_eps,
    )


def ours(tower):
    return (
        tower.width,
        tower.layers,
        tower.heads,
        tower.mlp_width,
        tower.activation,
        tower.norm_eps,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
def test_a_config_without_its_defaults_is_the_same_model(tmp_path, model, form):
    known = MODELS[model]
    plain = FORMS[form](known)
    assert type(known)(**plain).to_dict() == known.to_dict(), "transformers reads it so"
    spec = spec_of(tmp_path / "model", plain)
    vision, text = known.vision_config, known.text_config
    assert ours(spec.encoder) == layers_of(vision)
    assert (spec.encoder.image.size_px, spec.encoder.patch_px) == (
        vision.image_size, vision.patch_size,
    )  # fmt: skip
    assert ours(spec.text) == layers_of(text)
    assert (spec.text.vocab, spec.text.context_tokens) == (
        text.vocab_size, text.max_position_embeddings,
    )  # fmt: skip
    width = text.projection_size if known.model_type == "siglip" else known.projection_dim
    assert spec.embed_width == spec.text.embed_width == width
