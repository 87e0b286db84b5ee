"""SigLIP's text tower: layers without a mask, the last row, a linear map with bias.

Source: transformers, models/siglip/modeling_siglip.py, SiglipTextTransformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.embedder import TextTowerSpec
from mllm_export.export.encoders._layers import (
    affine,
    layer,
    layer_norm,
    layer_parameters,
    linear_parameters,
    norm_parameters,
)
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDINGS = "text_model.embeddings."
_LAYERS = "text_model.encoder.layers."
_NORM = "text_model.final_layer_norm"
_HEAD = "text_model.head"


class SiglipText:
    """Padding is read like text, so every text is padded to the same length."""

    def parameters(self, spec: TextTowerSpec) -> Mapping[str, Shape]:
        """Tables, layers, norm, head."""
        shapes: dict[str, Shape] = {
            f"{_EMBEDDINGS}token_embedding.weight": (spec.vocab, spec.width),
            f"{_EMBEDDINGS}position_embedding.weight": (spec.context_tokens, spec.width),
        }
        for index in range(spec.layers):
            shapes.update(layer_parameters(f"{_LAYERS}{index}.", spec))
        shapes.update(norm_parameters(_NORM, spec.width))
        shapes.update(linear_parameters(_HEAD, spec.width, spec.embed_width))
        return shapes

    def apply(self, spec: TextTowerSpec, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Ids i64[1, T] to f32[1, E]."""
        from torch.nn import functional

        rows = functional.embedding(ids, weights[f"{_EMBEDDINGS}token_embedding.weight"])
        rows = rows + weights[f"{_EMBEDDINGS}position_embedding.weight"]
        for index in range(spec.layers):
            rows = layer(spec, weights, f"{_LAYERS}{index}.", rows)
        pooled = layer_norm(spec.norm_eps, weights, _NORM, rows)[:, -1]
        return affine(weights, _HEAD, pooled)


TEXT_TOWER = SiglipText()
