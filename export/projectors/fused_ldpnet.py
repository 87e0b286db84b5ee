"""Cobra's projector of fewer tokens: two linear maps, an average over the grid, a convolution.

MobileVLM V2's, but for the first map, four times as wide as the features, and a grid of 14 by 14.
Source: h-zhao1997/cobra, cobra/util/nn_utils.py, FusedLDPProjector.
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

_POOLED = 14
"""Side of the pooled grid, whatever comes in. Source: TokenDownLayer((14, 14))."""


class FusedLdpnet:
    """729 tokens to 196 for the published 27 x 27 grid; numbers 1 and 3 have no tensors."""

    def spec(self, in_width: int, out_width: int, tokens_in: int) -> ProjectorSpec:
        """Raises SpecError where the tokens make no square."""
        grid_side("fused_ldpnet", tokens_in)
        return ProjectorSpec(
            kind="fused_ldpnet",
            in_width=in_width,
            out_width=out_width,
            tokens_in=tokens_in,
            tokens_out=_POOLED**2,
        )

    def parameters(self, spec: ProjectorSpec) -> Mapping[str, Shape]:
        """Linears 0 and 2, and one depthwise 3x3 convolution with a bias."""
        inner, width = 4 * spec.in_width, spec.out_width
        return {
            **linear_shapes("0.", spec.in_width, inner),
            **linear_shapes("2.", inner, width),
            "4.peg.0.weight": (width, 1, 3, 3),
            "4.peg.0.bias": (width,),
        }

    def apply(self, spec: ProjectorSpec, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Features f32[1, tokens_in, in_width] to f32[1, 196, out_width]."""
        side = grid_side(spec.kind, spec.tokens_in)
        grid = pooled(to_map(mlp2x(weights, "0.", "2.", features), side), side, _POOLED)
        return to_rows(with_neighbours(weights, "4.peg.0.", grid))


PROJECTOR = FusedLdpnet()
