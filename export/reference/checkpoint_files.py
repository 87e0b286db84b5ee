"""Folders written whole or not at all, and the files that several layouts share."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm_export.export.reference.spec import VisionSizes


def write_json(folder: Path, files: dict[str, dict[str, object]]) -> None:
    """Write JSON files by name, keys in the order given."""
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill; when the block ends it takes the place of the old one."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def clip_vision_keys(sizes: VisionSizes) -> dict[str, object]:
    """What a CLIP vision config says of the tower."""
    return {
        "attention_dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": sizes.width,
        "image_size": sizes.image_px,
        "intermediate_size": sizes.mlp_width,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": sizes.heads,
        "num_channels": 3,
        "num_hidden_layers": sizes.layers,
        "patch_size": sizes.patch_px,
        "projection_dim": sizes.width,
    }


def vision_sizes(keys: dict[str, int], select_layer: int) -> VisionSizes:
    """The tower's sizes, read back from its config."""
    return VisionSizes(
        image_px=keys["image_size"],
        patch_px=keys["patch_size"],
        width=keys["hidden_size"],
        heads=keys["num_attention_heads"],
        layers=keys["num_hidden_layers"],
        mlp_width=keys["intermediate_size"],
        select_layer=select_layer,
    )
