"""CLIP's vision tower through transformers' own layers, in float32, a layer at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings

from mllm_export.config import Config
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.reference import Floats, Reader
from mllm_export.device_tests.reference_tower import OriginalTower, TowerSource
from mllm_export.device_tests.references._fill import LayerStack, fill

BATCH = 8
"""Pictures that go through a layer together; bounds the memory of the MLP's inner values."""


def clip_config(config: Config) -> CLIPVisionConfig:
    """Transformers' configuration from the tower's published one, which may leave out defaults."""
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "image_size", "patch_size",
    )  # fmt: skip
    found = CLIPVisionConfig(
        **{key: config.positive(key) for key in keys if key in config},
        hidden_act=config.text("hidden_act", "quick_gelu"),
        layer_norm_eps=config.number("layer_norm_eps", 1e-5),
    )
    found._attn_implementation = "sdpa"
    return found


class ClipFeatures:
    """`hidden_states[select]` of CLIPVisionModel, without the layers after it."""

    def __init__(
        self,
        config: CLIPVisionConfig,
        read: Reader,
        select_layer: int,
        keep_cls: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`read` takes the published names from `vision_model.` on."""
        self._dtype = dtype
        self._config = config
        self._keep_cls = keep_cls
        self._read = read
        layers = config.num_hidden_layers
        # hidden_states has one entry more than there are layers: the first is their input.
        self._run = range(layers + 1)[select_layer]
        prefix = "vision_model.encoder.layers.{}."
        self._stack = LayerStack(lambda _: CLIPEncoderLayer(config), read, prefix, layers, dtype)

    def modules(self) -> dict[str, nn.Module]:
        """What runs until the selected hidden state, without data, by published prefix."""
        config = self._config
        with torch.device("meta"):
            found: dict[str, nn.Module] = {
                "vision_model.embeddings.": CLIPVisionEmbeddings(config),
                "vision_model.pre_layrnorm.": nn.LayerNorm(config.hidden_size),
            }
            for index in range(self._run):
                found[f"vision_model.encoder.layers.{index}."] = CLIPEncoderLayer(config)
        return found

    @torch.inference_mode()
    def features(self, pixels: Floats) -> torch.Tensor:
        """Shapes: f32[B, 3, S, S] -> f32[B, tokens, width]."""
        config, read, dtype = self._config, self._read, self._dtype
        make_embed = partial(CLIPVisionEmbeddings, config)
        make_norm = partial(nn.LayerNorm, config.hidden_size, config.layer_norm_eps)
        embed = fill(make_embed, read, "vision_model.embeddings.", dtype)
        norm = fill(make_norm, read, "vision_model.pre_layrnorm.", dtype)
        batches = torch.split(torch.from_numpy(pixels).to(dtype), BATCH)
        states = [norm(embed(batch)) for batch in batches]
        for index in range(self._run):
            layer = self._stack.layer(index)
            states = [layer(one, None, None)[0] for one in states]
        whole = torch.cat(states)
        return whole if self._keep_cls else whole[:, 1:]

    def resized(self, table: Original) -> None:
        """No table of another size is published for it."""
        del table


class Clip:
    """CLIPVisionModel."""

    title = "transformers' CLIPVisionModel"

    def processor(self, folder: Path | None, config: Config) -> Any:
        """CLIP's slow processor."""
        return clip_processor(folder, clip_config(config).image_size)

    def width(self, config: Config) -> int:
        """Of the residual stream."""
        return int(clip_config(config).hidden_size)

    def open(self, source: TowerSource, dtype: torch.dtype) -> OriginalTower:
        """Layer by layer."""
        return ClipFeatures(
            clip_config(source.config),
            source.read,
            source.select_layer,
            keep_cls=source.feature == "cls_patch",
            dtype=dtype,
        )


def clip_processor(folder: Path | None, image_px: int) -> Any:
    """CLIP's slow processor: that of a folder which has one, else with the published constants."""
    from transformers import CLIPImageProcessor

    if folder is not None and (folder / "preprocessor_config.json").is_file():
        return CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    return CLIPImageProcessor(
        size={"shortest_edge": image_px}, crop_size={"height": image_px, "width": image_px}
    )


TOWER = Clip()
