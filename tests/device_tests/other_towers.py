"""Checkpoints whose tower is not CLIP: LLaVA with ViTamin in both its layouts, Mipha."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch

from mllm_export.export.families.llava import FAMILY as LLAVA
from mllm_export.export.families.llava_phi import FAMILY as LLAVA_PHI
from mllm_export.export.family import TinyModel
from mllm_export.export.random_checkpoint import random_tensor, write_random_checkpoint

WEIGHTS = "pytorch_model.bin"
_SIDE = 64
_TIMM = {"architecture": "vitamin_small_224", "model_args": {"depth": 3, "img_size": _SIDE}}
_OPEN_CLIP = {
    "embed_dim": 384,
    "vision_cfg": {"timm_model_name": "vitamin_small_224", "timm_pool": "", "image_size": 224},
    "model_args": {"depth": 3, "img_size": _SIDE},
}


def vitamin(tower_config: dict[str, object]) -> TinyModel:
    """LLaVA in the authors' layout; ViTamin-S of three blocks, trained with the rest."""
    tiny = LLAVA.tiny()
    config = {**tiny.config, "mm_hidden_size": 384, "mm_vision_tower": "example/vitamin-tiny"}
    return replace(tiny, config=config, tower_name="vitamin-tiny", tower_config=tower_config)


def llava_vitamin(folder: Path) -> Path:
    """Below the family's prefix timm's names."""
    return write_random_checkpoint(folder, vitamin(_TIMM))


def llava_vitamin_open_clip(folder: Path) -> Path:
    """Below the family's prefix open_clip's: `visual.trunk.`, then timm's."""
    write_random_checkpoint(folder, vitamin(_OPEN_CLIP))
    inside = "model.vision_tower.vision_tower."
    state = torch.load(folder / WEIGHTS, weights_only=True)
    torch.save(
        {n.replace(inside, f"{inside}visual.trunk."): v for n, v in state.items()}, folder / WEIGHTS
    )
    return folder


def llava_vitamin_resized(folder: Path) -> Path:
    """A table of positions of another resolution than the one that the model runs at."""
    write_random_checkpoint(folder, vitamin(_TIMM))
    name = "model.vision_tower.vision_tower.pos_embed"
    state = torch.load(folder / WEIGHTS, weights_only=True)
    state[name] = torch.from_numpy(random_tensor(name, (1, 36, 384), 3))
    torch.save(state, folder / WEIGHTS)
    return folder


def mipha_model() -> TinyModel:
    """LLaVA-Phi's nesting with SigLIP: no class token, its pooling head unused."""
    tiny = LLAVA_PHI.tiny()
    parts = copy.deepcopy(tiny.config["vision_config"])
    assert isinstance(parts, dict)
    parts["vision_tower"].update(
        model_type="mipha_vision_model",
        vision_model_name_or_path="google/siglip-so400m-patch14-384",
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    processor = {
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "size": {"height": 64, "width": 64},
    }
    config = {**tiny.config, "model_type": "mipha_phi", "vision_config": parts}
    return replace(tiny, config=config, preprocessor=processor)


def mipha(folder: Path) -> Path:
    """As published, with the head that nothing uses."""
    write_random_checkpoint(folder, mipha_model())
    state = torch.load(folder / WEIGHTS, weights_only=True)
    head = "model.vision_tower.vision_model.head.probe"
    torch.save({**state, head: torch.ones(1, 1, 64)}, folder / WEIGHTS)
    return folder


MODELS = {
    "LLaVA with ViTamin, timm": llava_vitamin,
    "LLaVA with ViTamin, open_clip": llava_vitamin_open_clip,
    "LLaVA with ViTamin, positions resized": llava_vitamin_resized,
    "Mipha": mipha,
}
