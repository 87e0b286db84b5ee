"""Maths that projectors share: affine maps and rows laid out as a square map."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING

from mllm_export.errors import SpecError
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor


def linear_shapes(name: str, width_in: int, width_out: int) -> dict[str, Shape]:
    """Parameters of one Linear; `name` ends in a dot, or is empty."""
    return {f"{name}weight": (width_out, width_in), f"{name}bias": (width_out,)}


def affine(weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    """One Linear, or a 1x1 convolution on rows."""
    return rows @ weights[f"{name}weight"] + weights[f"{name}bias"]


def mlp2x(weights: Mapping[str, Tensor], first: str, second: str, rows: Tensor) -> Tensor:
    """Linear, GELU in its exact (erf) form, Linear."""
    from torch.nn import functional

    return affine(weights, second, functional.gelu(affine(weights, first, rows)))


def grid_side(kind: str, tokens_in: int) -> int:
    """Side of the square that `tokens_in` patches make.

    Raises: SpecError when they make none.
    """
    side = isqrt(tokens_in)
    if side * side != tokens_in or not side:
        raise SpecError(
            f"{kind} needs a square of patches, the tower gives {tokens_in} tokens; "
            "does mm_vision_select_feature keep the class token?"
        )
    return side


def to_map(rows: Tensor, side: int) -> Tensor:
    """Shapes: [1, side * side, D] in raster order -> [1, D, side, side]."""
    return rows.transpose(1, 2).reshape(1, -1, side, side)


def to_rows(grid: Tensor) -> Tensor:
    """Shapes: [1, D, h, w] -> [1, h * w, D] in raster order."""
    return grid.flatten(2).transpose(1, 2)


def pooled(grid: Tensor, side: int, to: int) -> Tensor:
    """AdaptiveAvgPool2d(to): window i goes from floor(i * side / to) to ceil((i + 1) * side / to).

    Written out because ONNX has no such operator and the exporter takes only sides that `to`
    divides.
    """
    from torch.nn import functional

    if side % to == 0:
        return functional.avg_pool2d(grid, side // to)
    return _pooled_axis(_pooled_axis(grid, 2, side, to), 3, side, to)


def _pooled_axis(grid: Tensor, axis: int, side: int, to: int) -> Tensor:
    import torch

    windows = [(i * side // to, -(-(i + 1) * side // to)) for i in range(to)]
    return torch.cat(
        [
            grid.narrow(axis, start, stop - start).mean(axis, keepdim=True)
            for start, stop in windows
        ],
        dim=axis,
    )


def with_neighbours(weights: Mapping[str, Tensor], name: str, grid: Tensor) -> Tensor:
    """A depthwise 3x3 convolution beside the map itself; it tells positions."""
    from torch.nn import functional

    kernel, bias = weights[f"{name}weight"], weights[f"{name}bias"]
    return functional.conv2d(grid, kernel, bias, padding=1, groups=kernel.shape[0]) + grid
