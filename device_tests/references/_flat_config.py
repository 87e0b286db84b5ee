"""Checkpoints whose config names the tower in flat mm_ keys: MobileVLM, LLaVA-1.5."""

from __future__ import annotations

from mllm_export.checkpoint import TOWER_PREFIX, Checkpoint
from mllm_export.config import Config
from mllm_export.device_tests.reference_tower import TowerSource, kind_of

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
    own = _tower_config(checkpoint)
    prefix = TOWER_PREFIX if outside else _INSIDE
    trunk = f"{prefix}visual.trunk."
    if kind_of(own) == "vitamin" and any(n.startswith(trunk) for n in checkpoint.shapes(outside)):
        prefix = trunk
    return TowerSource(
        kind=kind_of(own),
        config=own,
        read=lambda name: checkpoint.read(prefix + name),
        prefix=prefix,
        select_layer=config.integer("mm_vision_select_layer", -2),
        feature=config.text("mm_vision_select_feature", "patch"),
    )


def _tower_config(checkpoint: Checkpoint) -> Config:
    folder = checkpoint.tower
    if folder is not None:
        config = folder.config
        inner = "vision_config" in config and kind_of(config) != "vitamin"
        return config.section("vision_config") if inner else config
    name = checkpoint.config.text("mm_vision_tower")
    if not name.endswith("clip-vit-large-patch14-336"):
        checkpoint.require_tower()
    return Config(_CLIP_L_336, f"{name} (published config)")
