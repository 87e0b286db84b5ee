"""DINOv2 and SigLIP through timm's own vision transformer, in float32.

What Cobra takes is `get_intermediate_layers` of the block before the last: without a norm, prefix
tokens dropped. Source: h-zhao1997/cobra, cobra/models/backbones/vision/dinosiglip_vit.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from mllm_export.config import Config
from mllm_export.device_tests.originals import Array, Original
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.reference_tower import OriginalTower, TowerSource
from mllm_export.device_tests.reference_towers.clip import BATCH
from mllm_export.device_tests.references._fill import read_float32
from mllm_export.device_tests.references._watch import watch

_EMBEDDINGS = ("cls_token", "reg_token", "pos_embed")


class TimmFeatures:
    """The output of one block of a model that runs at `size_px`."""

    def __init__(self, source: TowerSource, size_px: int, name: str, dtype: torch.dtype) -> None:
        """`name` stands before the layers' names while they are watched."""
        self._source, self._size_px, self._name, self._dtype = source, size_px, name, dtype
        model = timm_model(source.config)
        self._depth = len(model.blocks)
        self._patch_px = int(model.patch_embed.patch_size[0])
        # As hidden_states count: the first is what goes into the blocks.
        self._run = range(self._depth + 1)[source.select_layer]

    def modules(self) -> dict[str, nn.Module]:
        """What runs until the selected block's output, as stored, by published prefix."""
        model = timm_model(self._source.config)
        holder = nn.Module()
        for name in _EMBEDDINGS:
            if (value := getattr(model, name, None)) is not None:
                setattr(holder, name, value)
        found: dict[str, nn.Module] = {"": holder, "patch_embed.": model.patch_embed}
        for index in range(self._run):
            found[f"blocks.{index}."] = model.blocks[index]
        return found

    def resized(self, table: Original) -> Original | None:
        """Positions at the size that the model runs at, as timm loads them."""
        side = self._size_px // self._patch_px
        if table.shape[1] == side**2:
            return None

        def read() -> Array:
            rows = read_float32(lambda _: table.read(), "")
            return np.asarray(resample_abs_pos_embed(rows, [side, side], num_prefix_tokens=0))

        return replace(table, shape=(1, side**2, table.shape[2]), read=read)

    @torch.inference_mode()
    def features(self, pixels: Floats) -> torch.Tensor:
        """Shapes: f32[B, 3, S, S] -> f32[B, tokens, width]."""
        model = self._filled()
        batches = torch.split(torch.from_numpy(pixels).to(self._dtype), BATCH)
        return torch.cat([self._features(model, batch) for batch in batches])

    def _features(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        (rows,) = model.get_intermediate_layers(batch, n={self._run - 1})
        return torch.as_tensor(rows)

    def _filled(self) -> Any:
        """The model at its own resolution, positions resized by timm as it loads them."""
        model = timm_model(self._source.config, self._size_px)
        # What stands behind the selected block is not run, and not in the export's names.
        del model.blocks[self._run :]
        model.norm, model.attn_pool = nn.Identity(), None
        state = {n: read_float32(self._source.read, n) for n, _ in model.named_parameters()}
        state = checkpoint_filter_fn(state, model)
        model.load_state_dict(state, strict=True, assign=True)
        for index in range(self._run):
            watch(model.blocks[index], f"{self._name}blocks.{index}.")
        return model.requires_grad_(False).eval().to(self._dtype)


class TimmVit:
    """By timm's name of the architecture, at the size that its files are stored for."""

    title = "timm's VisionTransformer"

    def processor(self, folder: Path | None, config: Config) -> Any:
        """Timm's own evaluation transform."""
        del folder
        return timm.data.create_transform(
            **timm.data.resolve_data_config({}, model=timm_model(config)), is_training=False
        )

    def width(self, config: Config) -> int:
        """Of the blocks."""
        return int(timm_model(config).embed_dim)

    def open(self, source: TowerSource, dtype: torch.dtype) -> OriginalTower:
        """Whole: it is run at once, at the stored size."""
        size_px = int(timm_model(source.config).patch_embed.img_size[0])
        return TimmFeatures(source, size_px, "", dtype)


def timm_model(config: Config, size_px: int | None = None) -> Any:
    """Without data; at another resolution than the stored one where it is given."""
    sizes: dict[str, Any] = {}
    if "model_args" in config:
        sizes = dict(config.section("model_args").plain())
    if size_px is not None:
        sizes["img_size"] = size_px
    with torch.device("meta"):
        return timm.create_model(config.text("architecture").split(".")[0], num_classes=0, **sizes)


TOWER = TimmVit()
