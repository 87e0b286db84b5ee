"""Cobra's projector of joined features: three linear maps, the first four times as wide.

Source: h-zhao1997/cobra, cobra/util/nn_utils.py, FusedMLPProjector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.projectors._rows import affine, linear_shapes
from mllm_export.spec import ProjectorSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor


class FusedGeluMlp:
    """As many tokens out as in; numbers 1 and 3 of the Sequential are GELUs."""

    def spec(self, in_width: int, out_width: int, tokens_in: int) -> ProjectorSpec:
        """Any sizes will do."""
        return ProjectorSpec(
            kind="fused_gelu_mlp",
            in_width=in_width,
            out_width=out_width,
            tokens_in=tokens_in,
            tokens_out=tokens_in,
        )

    def parameters(self, spec: ProjectorSpec) -> Mapping[str, Shape]:
        """Linears 0, 2 and 4."""
        inner = 4 * spec.in_width
        return {
            **linear_shapes("0.", spec.in_width, inner),
            **linear_shapes("2.", inner, spec.out_width),
            **linear_shapes("4.", spec.out_width, spec.out_width),
        }

    def apply(
        self,
        spec: ProjectorSpec,  # noqa: ARG002  # the protocol's argument
        weights: Mapping[str, Tensor],
        features: Tensor,
    ) -> Tensor:
        """Features f32[1, T, in_width] to f32[1, T, out_width]."""
        from torch.nn.functional import gelu

        wide = gelu(affine(weights, "0.", features))
        return affine(weights, "4.", gelu(affine(weights, "2.", wide)))


PROJECTOR = FusedGeluMlp()
