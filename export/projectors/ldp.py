"""MobileVLM's projector: an MLP and two inverted residual blocks with squeeze-excitation.

Source: Meituan-AutoML/MobileVLM, mobilevlm/model/vision_projector.py, LDPBlock; the blocks are
MobileNetV3's, torchvision/models/mobilenetv3.py, InvertedResidual.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.projectors._rows import (
    affine,
    grid_side,
    linear_shapes,
    mlp2x,
    to_map,
    to_rows,
)
from mllm_export.spec import ProjectorSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_NORM_EPS = 1e-5
"""Source: LayerNorm2d's default, torchvision/ops and MobileVLM's vision_projector.py."""


class Ldp:
    """576 tokens to 144 for the published 24 x 24 grid: block 2 halves its sides."""

    def spec(self, in_width: int, out_width: int, tokens_in: int) -> ProjectorSpec:
        """Raises SpecError where the tokens make no square."""
        side = grid_side("ldp", tokens_in)
        return ProjectorSpec(
            kind="ldp",
            in_width=in_width,
            out_width=out_width,
            tokens_in=tokens_in,
            tokens_out=_halved(side) ** 2,
        )

    def parameters(self, spec: ProjectorSpec) -> Mapping[str, Shape]:
        """24 tensors; mlp.0, mlp.2 and mb_block.0 are an Identity, the GELU and an Identity."""
        width = spec.out_width
        shapes = {
            **linear_shapes("mlp.1.", spec.in_width, width),
            **linear_shapes("mlp.3.", width, width),
        }
        for block in (1, 2):
            shapes.update(_block_parameters(f"mb_block.{block}.block.", width))
        return shapes

    def apply(self, spec: ProjectorSpec, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Features f32[1, tokens_in, in_width] to f32[1, tokens_out, out_width]."""
        side = grid_side(spec.kind, spec.tokens_in)
        rows = mlp2x(weights, "mlp.1.", "mlp.3.", features)
        rows = rows + _block(weights, "mb_block.1.block.", rows, side, stride=1)
        # A block that changes the grid has no residual.
        return _block(weights, "mb_block.2.block.", rows, side, stride=2)


def squeeze_width(width: int) -> int:
    """Channels inside squeeze-excitation: a quarter, rounded to a multiple of 8.

    Source: torchvision/models/_utils.py, _make_divisible, whose rounding never takes off
    more than a tenth.
    """
    quarter = width // 4
    rounded = max(8, (quarter + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * quarter else rounded


def _halved(side: int) -> int:
    """A 3x3 convolution with stride 2 and a border of 1."""
    return (side - 1) // 2 + 1


def _block_parameters(at: str, width: int) -> dict[str, Shape]:
    squeezed = squeeze_width(width)
    return {
        f"{at}0.0.weight": (width, 1, 3, 3),
        f"{at}0.1.weight": (width,),
        f"{at}0.1.bias": (width,),
        f"{at}1.fc1.weight": (squeezed, width, 1, 1),
        f"{at}1.fc1.bias": (squeezed,),
        f"{at}1.fc2.weight": (width, squeezed, 1, 1),
        f"{at}1.fc2.bias": (width,),
        f"{at}2.0.weight": (width, width, 1, 1),
        f"{at}2.1.weight": (width,),
        f"{at}2.1.bias": (width,),
    }


def _block(weights: Mapping[str, Tensor], at: str, rows: Tensor, side: int, stride: int) -> Tensor:
    """One block without its residual; on rows wherever the norm over channels allows."""
    from torch.nn import functional

    kernel = weights[f"{at}0.0.weight"]
    grid = functional.conv2d(
        to_map(rows, side), kernel, stride=stride, padding=1, groups=kernel.shape[0]
    )
    rows = functional.hardswish(_channel_norm(weights, f"{at}0.1.", to_rows(grid)))
    rows = rows * _excitation(weights, f"{at}1.", rows)
    return _channel_norm(weights, f"{at}2.1.", rows @ weights[f"{at}2.0.weight"])


def _excitation(weights: Mapping[str, Tensor], at: str, rows: Tensor) -> Tensor:
    """A factor from 0 to 1 for every channel. Shapes: [1, T, D] -> [1, 1, D]."""
    from torch.nn import functional

    mean = rows.mean(1, keepdim=True)
    squeezed = affine(weights, f"{at}fc1.", mean).relu()
    return functional.hardsigmoid(affine(weights, f"{at}fc2.", squeezed))


def _channel_norm(weights: Mapping[str, Tensor], at: str, rows: Tensor) -> Tensor:
    from torch.nn import functional

    scale, shift = weights[f"{at}weight"], weights[f"{at}bias"]
    return functional.layer_norm(rows, scale.shape, scale, shift, _NORM_EPS)


PROJECTOR = Ldp()
