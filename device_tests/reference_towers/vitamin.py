"""ViTamin through timm's own model, in float32.

What the published towers for LLaVA cut is told nowhere but in code that comes with their weights;
taken here is what leaves the selected block, before any norm: timm's `forward_intermediates`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from mllm_export.config import Config
from mllm_export.device_tests.originals import Array, Original
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.reference_tower import OriginalTower, TowerSource
from mllm_export.device_tests.reference_towers.clip import BATCH, clip_processor
from mllm_export.device_tests.references._fill import read_float32
from mllm_export.device_tests.references._watch import watch

_TABLE = "pos_embed"
_PARTS = (_TABLE, "patch_embed.", "blocks.")
"""Beginnings of the names that token features need."""


class VitaminFeatures:
    """The output of one block."""

    def __init__(self, source: TowerSource, dtype: torch.dtype) -> None:
        """Weights are read when they are needed."""
        self._source, self._dtype = source, dtype
        model = _model(source.config)
        self._depth, self._grid = len(model.blocks), model.patch_embed.grid_size
        # As hidden_states count: the first is what goes into the blocks.
        self._run = range(self._depth + 1)[source.select_layer]

    def modules(self) -> dict[str, nn.Module]:
        """What runs until the selected block's output, without data, by published prefix."""
        model = _model(self._source.config)
        found: dict[str, nn.Module] = {"patch_embed.": model.patch_embed}
        if model.pos_embed is not None:
            holder = nn.Module()
            stored = tuple(self._source.read(_TABLE).shape)
            holder.pos_embed = nn.Parameter(torch.empty(stored, device="meta"))
            found[""] = holder
        for index in range(self._run):
            found[f"blocks.{index}."] = model.blocks[index]
        return found

    def resized(self, table: Original) -> Original | None:
        """As timm loads them."""
        count = self._grid[0] * self._grid[1]
        if table.shape[1] == count:
            return None

        def read() -> Array:
            return np.asarray(self._at_its_size(read_float32(lambda _: table.read(), "")))

        return replace(table, shape=(1, count, table.shape[2]), read=read)

    def _at_its_size(self, table: torch.Tensor) -> torch.Tensor:
        made = resample_abs_pos_embed(table, list(self._grid), num_prefix_tokens=0)
        return torch.as_tensor(made)

    @torch.inference_mode()
    def features(self, pixels: Floats) -> torch.Tensor:
        """Shapes: f32[B, 3, S, S] -> f32[B, tokens, width]."""
        model = self._filled()
        batches = torch.split(torch.from_numpy(pixels).to(self._dtype), BATCH)
        return torch.cat([self._features(model, batch) for batch in batches])

    def _features(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        (rows,) = model.forward_intermediates(
            batch,
            indices=[self._run - 1],
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return torch.as_tensor(rows)

    def _filled(self) -> Any:
        """Timm's model with what the features need; blocks behind them are never run."""
        model = _model(self._source.config)
        kept = [n for n, _ in model.named_parameters() if n.startswith(_PARTS)]
        kept = [n for n in kept if not n.startswith("blocks.") or _block(n) < self._run]
        state = {name: read_float32(self._source.read, name) for name in kept}
        if _TABLE in state:
            state[_TABLE] = self._at_its_size(state[_TABLE])
        model.load_state_dict(state, strict=False, assign=True)
        for index in range(self._run):
            watch(model.blocks[index], f"blocks.{index}.")
        return model.requires_grad_(False).eval().to(self._dtype)


class Vitamin:
    """By timm's name of the architecture; CLIP's processor at the size in that name."""

    title = "timm's ViTamin"

    def processor(self, folder: Path | None, config: Config) -> Any:
        """CLIP's slow processor."""
        return clip_processor(folder, _named(config)[1])

    def width(self, config: Config) -> int:
        """Of the blocks."""
        return int(_model(config).embed_dim)

    def open(self, source: TowerSource, dtype: torch.dtype) -> OriginalTower:
        """Whole: it is run at once."""
        return VitaminFeatures(source, dtype)


def _named(config: Config) -> tuple[str, int]:
    """Timm's name and the image size, which the name or `model_args` says."""
    if "architecture" in config:
        name = config.text("architecture")
    else:
        name = config.section("vision_cfg").text("timm_model_name")
    name = name.split(".")[0]
    size_px = int(name.rsplit("_", 1)[1])
    if "model_args" in config:
        size_px = config.section("model_args").positive("img_size", size_px)
    return name, size_px


def _model(config: Config) -> Any:
    """Without data."""
    name, size_px = _named(config)
    sizes: dict[str, int] = {"img_size": size_px}
    if "model_args" in config and "depth" in config.section("model_args"):
        sizes["depth"] = config.section("model_args").positive("depth")
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **sizes)


def _block(name: str) -> int:
    return int(name.split(".")[1])


TOWER = Vitamin()
