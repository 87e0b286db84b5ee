"""Configs of encoders by hub name, for checkpoints that carry the weights but not the folder."""

from __future__ import annotations

from mllm_export.config import Config

CLIP_L_336: dict[str, object] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""Source: openai/clip-vit-large-patch14-336, config.json, vision_config."""

_PUBLISHED = {"openai/clip-vit-large-patch14-336": CLIP_L_336}


def published_tower(name: str) -> Config | None:
    """The published config of that encoder, or None."""
    data = _PUBLISHED.get(name)
    return None if data is None else Config(data, f"{name} (published config)")
