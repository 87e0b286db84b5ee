"""LLaVA-1.5's projector: Linear, GELU, Linear.

Source: haotian-liu/LLaVA, llava/model/multimodal_projector/builder.py, 'mlpNx_gelu' with N = 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.projectors._rows import linear_shapes, mlp2x
from mllm_export.spec import ProjectorSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor


class Mlp2xGelu:
    """As many tokens out as in; the GELU is number 1 of the Sequential and has no tensors."""

    def spec(self, in_width: int, out_width: int, tokens_in: int) -> ProjectorSpec:
        """Any sizes will do."""
        return ProjectorSpec(
            kind="mlp2x_gelu",
            in_width=in_width,
            out_width=out_width,
            tokens_in=tokens_in,
            tokens_out=tokens_in,
        )

    def parameters(self, spec: ProjectorSpec) -> Mapping[str, Shape]:
        """Linears 0 and 2 of a Sequential."""
        return {
            **linear_shapes("0.", spec.in_width, spec.out_width),
            **linear_shapes("2.", spec.out_width, spec.out_width),
        }

    def apply(
        self,
        spec: ProjectorSpec,  # noqa: ARG002  # the protocol's argument
        weights: Mapping[str, Tensor],
        features: Tensor,
    ) -> Tensor:
        """Features f32[1, T, in_width] to f32[1, T, out_width]."""
        return mlp2x(weights, "0.", "2.", features)


PROJECTOR = Mlp2xGelu()
