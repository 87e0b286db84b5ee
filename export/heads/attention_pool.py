"""SigLIP's pooled image: a norm, then a learned query that attends to all rows, then an MLP.

Its patches are what the query attends to, behind the norm: `last_hidden_state`.
Source: transformers, models/siglip/modeling_siglip.py, SiglipMultiheadAttentionPoolingHead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.errors import SpecError
from mllm_export.export.encoders._layers import (
    attention,
    layer_norm,
    linear_parameters,
    mlp,
    mlp_parameters,
    norm_parameters,
)
from mllm_export.spec import EncoderSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_NORM = "vision_model.post_layernorm"
_AT = "vision_model.head."
_IN = f"{_AT}attention.in_proj_"


class AttentionPool:
    """The embedding is as wide as the tower; there is no projection."""

    def parameters(self, spec: EncoderSpec, embed_width: int) -> Mapping[str, Shape]:
        """The norm before, and the head. Raises: SpecError for another width."""
        if embed_width != spec.width:
            raise SpecError(f"an attention pool gives width {spec.width}, not {embed_width}")
        width = spec.width
        return {
            **norm_parameters(_NORM, width),
            f"{_AT}probe": (1, 1, width),
            f"{_IN}weight": (3 * width, width),
            f"{_IN}bias": (3 * width,),
            **linear_parameters(f"{_AT}attention.out_proj", width, width),
            **norm_parameters(f"{_AT}layernorm", width),
            **mlp_parameters(f"{_AT}mlp.", spec),
        }

    def apply(
        self, spec: EncoderSpec, weights: Mapping[str, Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows f32[1, N, D] to f32[1, D] and f32[1, N, D]."""
        import torch

        patches = layer_norm(spec.norm_eps, weights, _NORM, rows)
        # One product for all three, though of the query one row is used: a part of the packed
        # matrix would stand in a file as a second, anonymous copy.
        given = torch.cat([weights[f"{_AT}probe"], patches], dim=1)
        query, key, value = (given @ weights[f"{_IN}weight"] + weights[f"{_IN}bias"]).chunk(
            3, dim=-1
        )
        mixed = attention(spec.heads, query[:, :1], key[:, 1:], value[:, 1:])
        out = f"{_AT}attention.out_proj"
        pooled = mixed @ weights[f"{out}.weight"] + weights[f"{out}.bias"]
        normed = layer_norm(spec.norm_eps, weights, f"{_AT}layernorm", pooled)
        return (pooled + mlp(spec, weights, f"{_AT}mlp.", normed))[:, 0], patches


HEAD = AttentionPool()
