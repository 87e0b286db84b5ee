"""Checkpoints whose config names the tower in flat mm_ keys: MobileVLM, LLaVA-1.5."""

from __future__ import annotations

from mllm_export.checkpoint import TOWER_PREFIX, Checkpoint
from mllm_export.config import Config
from mllm_export.device_tests.references._llava import TowerSource

_INSIDE = "model.vision_tower.vision_tower."

_CLIP_L_336: dict[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""Source: openai/clip-vit-large-patch14-336, config.json, vision_config."""


def flat_tower(checkpoint: Checkpoint, outside: bool) -> TowerSource:
    """The tower of `mm_vision_tower`; `outside` takes the weights of its own folder."""
    config = checkpoint.config
    prefix = TOWER_PREFIX if outside else _INSIDE
    return TowerSource(
        config=_tower_config(checkpoint),
        read=lambda name: checkpoint.read(prefix + name),
        prefix=prefix,
        select_layer=config.integer("mm_vision_select_layer", -2),
        feature=config.text("mm_vision_select_feature", "patch"),
    )


def _tower_config(checkpoint: Checkpoint) -> Config:
    folder = checkpoint.tower
    if folder is not None:
        config = folder.config
        return config.section("vision_config") if "vision_config" in config else config
    name = checkpoint.config.text("mm_vision_tower")
    if not name.endswith("clip-vit-large-patch14-336"):
        checkpoint.require_tower()
    return Config(_CLIP_L_336, f"{name} (published config)")
