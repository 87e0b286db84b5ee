"""As `mean_norm`, with the bias that timm's own layout stores.

Source: timm, models/vision_transformer.py, VisionTransformer.head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.heads.mean_norm import HEAD as MEAN_NORM
from mllm_export.spec import EncoderSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor


class MeanNormBias:
    """The mean over tokens, a norm, a linear map with bias."""

    def parameters(self, spec: EncoderSpec, embed_width: int) -> Mapping[str, Shape]:
        """Norm and linear map."""
        return {**MEAN_NORM.parameters(spec, embed_width), "head.bias": (embed_width,)}

    def apply(
        self, spec: EncoderSpec, weights: Mapping[str, Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows f32[1, N, D] to f32[1, E] and themselves."""
        pooled, patches = MEAN_NORM.apply(spec, weights, rows)
        return pooled + weights["head.bias"], patches


HEAD = MeanNormBias()
