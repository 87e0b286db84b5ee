"""CLIP's text tower: causal layers, the row of the first end token, a projection without bias.

Source: transformers, models/clip/modeling_clip.py, CLIPTextTransformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.embedder import TextTowerSpec
from mllm_export.export.encoders._layers import layer, layer_norm, layer_parameters, norm_parameters
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDINGS = "text_model.embeddings."
_LAYERS = "text_model.encoder.layers."
_NORM = "text_model.final_layer_norm"


class ClipText:
    """What follows the end token cannot reach it, so padding needs no mask."""

    def parameters(self, spec: TextTowerSpec) -> Mapping[str, Shape]:
        """Tables, layers, norm, projection."""
        shapes: dict[str, Shape] = {
            f"{_EMBEDDINGS}token_embedding.weight": (spec.vocab, spec.width),
            f"{_EMBEDDINGS}position_embedding.weight": (spec.context_tokens, spec.width),
        }
        for index in range(spec.layers):
            shapes.update(layer_parameters(f"{_LAYERS}{index}.", spec))
        shapes.update(norm_parameters(_NORM, spec.width))
        return {**shapes, "text_projection.weight": (spec.embed_width, spec.width)}

    def apply(self, spec: TextTowerSpec, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Ids i64[1, T] to f32[1, E]."""
        from torch.nn import functional

        rows = functional.embedding(ids, weights[f"{_EMBEDDINGS}token_embedding.weight"])
        rows = rows + weights[f"{_EMBEDDINGS}position_embedding.weight"]
        mask = causal_mask(spec.context_tokens)
        for index in range(spec.layers):
            rows = layer(spec, weights, f"{_LAYERS}{index}.", rows, mask)
        pooled = layer_norm(spec.norm_eps, weights, _NORM, end_row(rows, ids, spec.eos_id))
        return pooled @ weights["text_projection.weight"]


def causal_mask(tokens: int) -> Tensor:
    """f32[T, T]: 0 up to the diagonal, a number that softmax turns to 0 above it."""
    import torch

    # Not minus infinity: engines that compute in float16 turn it into NaN.
    return torch.full((tokens, tokens), -1e4).triu(1)


def end_row(rows: Tensor, ids: Tensor, eos_id: int) -> Tensor:
    """The row of the first end token. Shapes: f32[1, T, D], i64[1, T] -> f32[1, D].

    transformers and open_clip look for the largest id, which the end token has.
    """
    import torch

    first = (ids == eos_id).to(torch.int32).argmax(dim=-1, keepdim=True)
    places = torch.arange(rows.shape[1])
    chosen = (places == first).to(rows.dtype).reshape(1, 1, -1)
    return (chosen @ rows)[:, 0]


TEXT_TOWER = ClipText()
