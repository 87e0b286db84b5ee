"""open_clip's text tower: CLIP's maths under other names, with q, k and v in one matrix.

Source: Beckschen/ViTamin, ViTamin/open_clip/transformer.py, TextTransformer; norms with torch's
epsilon of 1e-5, GELU by the error function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.embedder import TextTowerSpec
from mllm_export.export.encoders._layers import (
    activate,
    affine,
    attention,
    layer_norm,
    linear_parameters,
    norm_parameters,
)
from mllm_export.export.text_towers.clip_text import causal_mask, end_row
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_LAYERS = "transformer.resblocks."


class OpenClipText:
    """`text_projection` is a matrix [width, embed_width], not a Linear's [out, in]."""

    def parameters(self, spec: TextTowerSpec) -> Mapping[str, Shape]:
        """Tables, blocks, norm, projection."""
        width = spec.width
        shapes: dict[str, Shape] = {
            "token_embedding.weight": (spec.vocab, width),
            "positional_embedding": (spec.context_tokens, width),
        }
        for index in range(spec.layers):
            at = f"{_LAYERS}{index}."
            shapes.update(norm_parameters(f"{at}ln_1", width))
            shapes[f"{at}attn.in_proj_weight"] = (3 * width, width)
            shapes[f"{at}attn.in_proj_bias"] = (3 * width,)
            shapes.update(linear_parameters(f"{at}attn.out_proj", width, width))
            shapes.update(norm_parameters(f"{at}ln_2", width))
            shapes.update(linear_parameters(f"{at}mlp.c_fc", width, spec.mlp_width))
            shapes.update(linear_parameters(f"{at}mlp.c_proj", spec.mlp_width, width))
        shapes.update(norm_parameters("ln_final", width))
        return {**shapes, "text_projection": (width, spec.embed_width)}

    def apply(self, spec: TextTowerSpec, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Ids i64[1, T] to f32[1, E]."""
        from torch.nn import functional

        rows = functional.embedding(ids, weights["token_embedding.weight"])
        rows = rows + weights["positional_embedding"]
        mask = causal_mask(spec.context_tokens)
        for index in range(spec.layers):
            rows = _block(spec, weights, f"{_LAYERS}{index}.", rows, mask)
        last = end_row(rows, ids, spec.eos_id)
        pooled = layer_norm(spec.norm_eps, weights, "ln_final", last)
        return pooled @ weights["text_projection"]


def _block(
    spec: TextTowerSpec, weights: Mapping[str, Tensor], at: str, rows: Tensor, mask: Tensor
) -> Tensor:
    normed = layer_norm(spec.norm_eps, weights, f"{at}ln_1", rows)
    packed = normed @ weights[f"{at}attn.in_proj_weight"] + weights[f"{at}attn.in_proj_bias"]
    query, key, value = packed.chunk(3, dim=-1)
    mixed = attention(spec.heads, query, key, value, mask)
    rows = rows + affine(weights, f"{at}attn.out_proj", mixed)
    normed = layer_norm(spec.norm_eps, weights, f"{at}ln_2", rows)
    hidden = activate(spec.activation, affine(weights, f"{at}mlp.c_fc", normed))
    return rows + affine(weights, f"{at}mlp.c_proj", hidden)


TEXT_TOWER = OpenClipText()
