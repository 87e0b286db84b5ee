"""SigLIP's vision tower through transformers' own layers, in float32, a layer at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings

from mllm_export.config import Config
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.reference_tower import OriginalTower, TowerSource
from mllm_export.device_tests.reference_towers.clip import BATCH
from mllm_export.device_tests.references._fill import LayerStack, fill

_EMBEDDINGS, _LAYERS = "vision_model.embeddings.", "vision_model.encoder.layers.{}."


class SiglipFeatures:
    """`hidden_states[select]` of SiglipVisionModel: patches alone, no norm, no pooling head."""

    def __init__(self, source: TowerSource, dtype: torch.dtype) -> None:
        """Weights are read when they are needed."""
        self._dtype = dtype
        self._config = _config(source.config)
        self._read = source.read
        layers = self._config.num_hidden_layers
        # hidden_states has one entry more than there are layers: the first is their input.
        self._run = range(layers + 1)[source.select_layer]
        make = lambda _: SiglipEncoderLayer(self._config)  # noqa: E731
        self._stack = LayerStack(make, source.read, _LAYERS, layers, dtype)

    def modules(self) -> dict[str, nn.Module]:
        """What runs until the selected hidden state, without data, by published prefix."""
        with torch.device("meta"):
            found: dict[str, nn.Module] = {_EMBEDDINGS: SiglipVisionEmbeddings(self._config)}
            for index in range(self._run):
                found[_LAYERS.format(index)] = SiglipEncoderLayer(self._config)
        return found

    @torch.inference_mode()
    def features(self, pixels: Floats) -> torch.Tensor:
        """Shapes: f32[B, 3, S, S] -> f32[B, tokens, width]."""
        make = partial(SiglipVisionEmbeddings, self._config)
        embed = fill(make, self._read, _EMBEDDINGS, self._dtype)
        batches = torch.split(torch.from_numpy(pixels).to(self._dtype), BATCH)
        states = [embed(batch) for batch in batches]
        for index in range(self._run):
            layer = self._stack.layer(index)
            states = [_first(layer(one, None)) for one in states]
        return torch.cat(states)

    def resized(self, table: Original) -> None:
        """No table of another size is published for it."""
        del table


class Siglip:
    """SiglipVisionModel; a config lists what differs from SiglipVisionConfig's defaults."""

    title = "transformers' SiglipVisionModel"

    def processor(self, folder: Path | None, config: Config) -> Any:
        """SigLIP's slow processor: both sides resized."""
        from transformers import SiglipImageProcessor

        if folder is not None and (folder / "preprocessor_config.json").is_file():
            return SiglipImageProcessor.from_pretrained(folder, local_files_only=True)
        side = _config(config).image_size
        return SiglipImageProcessor(size={"height": side, "width": side}, resample=3)

    def width(self, config: Config) -> int:
        """Of the residual stream."""
        return int(_config(config).hidden_size)

    def open(self, source: TowerSource, dtype: torch.dtype) -> OriginalTower:
        """Layer by layer."""
        return SiglipFeatures(source, dtype)


def _config(config: Config) -> SiglipVisionConfig:
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "image_size", "patch_size",
    )  # fmt: skip
    sizes = {key: config.positive(key) for key in keys if key in config}
    found = SiglipVisionConfig(**sizes, layer_norm_eps=config.number("layer_norm_eps", 1e-6))
    found._attn_implementation = "sdpa"
    return found


def _first(made: Any) -> torch.Tensor:
    """Layers give a tensor, or a tuple that begins with it, by transformers' version."""
    found: torch.Tensor = made[0] if isinstance(made, tuple) else made
    return found


TOWER = Siglip()
