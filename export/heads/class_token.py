"""CLIP's pooled image: the class token, a norm, a projection without bias.

Its patches are `last_hidden_state` behind the class token: of the last layer, without that norm,
which CLIP has for the pooled token alone.
Source: transformers, models/clip/modeling_clip.py, CLIPVisionTransformer and CLIPModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.encoders._layers import layer_norm, norm_parameters
from mllm_export.spec import EncoderSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_NORM = "vision_model.post_layernorm"


class ClassToken:
    """Row 0 alone is normalised and projected."""

    def parameters(self, spec: EncoderSpec, embed_width: int) -> Mapping[str, Shape]:
        """Norm and projection."""
        norm = norm_parameters(_NORM, spec.width)
        return {**norm, "visual_projection.weight": (embed_width, spec.width)}

    def apply(
        self, spec: EncoderSpec, weights: Mapping[str, Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows f32[1, 1 + N, D] to f32[1, E] and f32[1, N, D]."""
        pooled = layer_norm(spec.norm_eps, weights, _NORM, rows[:, 0])
        return pooled @ weights["visual_projection.weight"], rows[:, spec.prefix_tokens :]


HEAD = ClassToken()
