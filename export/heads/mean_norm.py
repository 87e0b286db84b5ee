"""ViTamin's pooled image: the mean over tokens, a norm, a linear map where there is one.

Its patches are timm's `forward_features`: of the last block, without that norm.
Source: timm, models/vision_transformer.py, global_pool 'avg'; open_clip, timm_model.py, whose
projection has no bias. In open_clip's layout the map is `visual.head.proj`, here `head`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.encoders._layers import layer_norm, norm_parameters
from mllm_export.spec import EncoderSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor


class MeanNorm:
    """The norm comes after the mean, and with the encoder's epsilon."""

    def parameters(self, spec: EncoderSpec, embed_width: int) -> Mapping[str, Shape]:
        """Norm and projection; the bias, which timm's layout adds, is declared apart."""
        norm = norm_parameters("fc_norm", spec.width)
        return {**norm, "head.weight": (embed_width, spec.width)}

    def apply(
        self, spec: EncoderSpec, weights: Mapping[str, Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows f32[1, N, D] to f32[1, E] and themselves."""
        pooled = layer_norm(spec.norm_eps, weights, "fc_norm", rows.mean(dim=1))
        return pooled @ weights["head.weight"], rows


HEAD = MeanNorm()
