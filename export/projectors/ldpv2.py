"""MobileVLM V2's projector: an MLP, an average over the grid, a positional convolution.

Source: Meituan-AutoML/MobileVLM, mobilevlm/model/vision_projector.py, LDPNetV2Projector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.projectors._rows import (
    grid_side,
    linear_shapes,
    mlp2x,
    pooled,
    to_map,
    to_rows,
    with_neighbours,
)
from mllm_export.spec import ProjectorSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_POOLED = 12
"""Side of the pooled grid, whatever comes in. Source: TokenDownLayer((12, 12))."""


class LdpV2:
    """576 tokens to 144 for the published 24 x 24 grid; pooled before the convolution."""

    def spec(self, in_width: int, out_width: int, tokens_in: int) -> ProjectorSpec:
        """Raises SpecError where the tokens make no square."""
        grid_side("ldpv2", tokens_in)
        return ProjectorSpec(
            kind="ldpv2",
            in_width=in_width,
            out_width=out_width,
            tokens_in=tokens_in,
            tokens_out=_POOLED**2,
        )

    def parameters(self, spec: ProjectorSpec) -> Mapping[str, Shape]:
        """Two Linears and one depthwise 3x3 convolution with a bias."""
        width = spec.out_width
        return {
            **linear_shapes("mlp.mlp.0.", spec.in_width, width),
            **linear_shapes("mlp.mlp.2.", width, width),
            "peg.peg.0.weight": (width, 1, 3, 3),
            "peg.peg.0.bias": (width,),
        }

    def apply(self, spec: ProjectorSpec, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Features f32[1, tokens_in, in_width] to f32[1, 144, out_width]."""
        rows = mlp2x(weights, "mlp.mlp.0.", "mlp.mlp.2.", features)
        side = grid_side(spec.kind, spec.tokens_in)
        grid = pooled(to_map(rows, side), side, _POOLED)
        return to_rows(with_neighbours(weights, "peg.peg.0.", grid))


PROJECTOR = LdpV2()
