"""One linear layer. Source: haotian-liu/LLaVA, multimodal_projector/builder.py, 'linear'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.projectors._rows import affine, linear_shapes
from mllm_export.spec import ProjectorSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor


class LinearProjector:
    """As many tokens out as in."""

    def spec(self, in_width: int, out_width: int, tokens_in: int) -> ProjectorSpec:
        """Any sizes will do."""
        return ProjectorSpec(
            kind="linear",
            in_width=in_width,
            out_width=out_width,
            tokens_in=tokens_in,
            tokens_out=tokens_in,
        )

    def parameters(self, spec: ProjectorSpec) -> Mapping[str, Shape]:
        """The layer itself is the projector, so its names have no number."""
        return linear_shapes("", spec.in_width, spec.out_width)

    def apply(
        self,
        spec: ProjectorSpec,  # noqa: ARG002  # the protocol's argument
        weights: Mapping[str, Tensor],
        features: Tensor,
    ) -> Tensor:
        """Features f32[1, T, in_width] to f32[1, T, out_width]."""
        return affine(weights, "", features)


PROJECTOR = LinearProjector()
