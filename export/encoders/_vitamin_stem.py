"""ViTamin's convolutions and its resized positions.

Source: huggingface/pytorch-image-models, timm/models/vitamin.py (Stem, MbConvLNBlock,
Downsample2d, StridedConv) and timm/layers/pos_embed.py (resample_abs_pos_embed); equal to
Beckschen/ViTamin, ViTamin/models/vitamin.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mllm_export.export.encoders._layers import activate, affine, layer_norm, norm_parameters
from mllm_export.spec import ConvStages, EncoderSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_BACKBONE = "patch_embed.backbone."
_EXPAND = 4
"""Channels inside a block over those it gives. Source: VitConvCfg.expand_ratio."""


def stem_parameters(spec: EncoderSpec, conv: ConvStages) -> dict[str, Shape]:
    """The stem, the two stages, and the convolution that gives the tokens."""
    stem = f"{_BACKBONE}stem."
    width = conv.stem_width
    shapes: dict[str, Shape] = {
        **_conv(f"{stem}conv1", width, 3, 3),
        **norm_parameters(f"{stem}norm1", width),
        **_conv(f"{stem}conv2", width, width, 3),
    }
    for at, width_in, width_out in _blocks(conv):
        shapes.update(_block_parameters(at, width_in, width_out))
    last = conv.widths[-1]
    shapes.update(norm_parameters(f"{_BACKBONE}pool.norm", last))
    shapes.update(_conv(f"{_BACKBONE}pool.proj", spec.width, last, 3))
    return shapes


def tokens_of(
    spec: EncoderSpec, conv: ConvStages, weights: Mapping[str, Tensor], pixels: Tensor
) -> Tensor:
    """Pixels f32[1, 3, S, S] to rows f32[1, (S/16)^2, width], in raster order.

    Maps are kept channels-last between convolutions: norms and 1x1 convolutions are products
    over the last axis.
    """
    eps = spec.norm_eps
    stem = f"{_BACKBONE}stem."
    x = _convolve(weights, f"{stem}conv1", pixels, stride=2).permute(0, 2, 3, 1)
    x = activate(spec.activation, layer_norm(eps, weights, f"{stem}norm1", x))
    x = _convolve(weights, f"{stem}conv2", x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    for at, width_in, width_out in _blocks(conv):
        x = _block(spec, weights, at, x, width_in != width_out)
    x = layer_norm(eps, weights, f"{_BACKBONE}pool.norm", x).permute(0, 3, 1, 2)
    return _convolve(weights, f"{_BACKBONE}pool.proj", x, stride=2).flatten(2).transpose(1, 2)


def resized_positions(table: Tensor, side: int, wanted: int) -> Tensor:
    """A square table of positions f32[1, side^2, D] at another size: f32[1, wanted^2, D].

    Bicubic with antialiasing is a linear map along each axis, and is written as two products.
    """
    import torch

    if side == wanted:
        return table
    weights = torch.tensor(_bicubic(side, wanted)).T  # column w: what each old place gives to w
    x = table.reshape(side, side, -1).permute(2, 0, 1)  # D, rows, columns
    x = (x @ weights).transpose(1, 2)  # D, new columns, rows
    x = (x @ weights).transpose(1, 2)  # D, new rows, new columns
    return x.permute(1, 2, 0).reshape(1, wanted * wanted, -1)


def _bicubic(side: int, wanted: int) -> list[list[float]]:
    """For each of `wanted` places the weights of `side` old ones, which sum to 1.

    Source: Pillow, src/libImaging/Resample.c, precompute_coeffs and bicubic_filter, which torch's
    antialiased interpolation follows.
    """
    step = side / wanted
    stretch = max(step, 1.0)
    rows: list[list[float]] = []
    for place in range(wanted):
        centre = (place + 0.5) * step
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), side)
        row = [0.0] * side
        for old in range(first, last):
            row[old] = _cubic((old - centre + 0.5) / stretch)
        total = sum(row)
        rows.append([weight / total for weight in row])
    return rows


def _cubic(x: float) -> float:
    """Keys' kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _conv(name: str, width_out: int, width_in: int, side: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width_out, width_in, side, side), f"{name}.bias": (width_out,)}


def _blocks(conv: ConvStages) -> Iterator[tuple[str, int, int]]:
    """Name, channels in and channels out of every block; the first of a stage has stride 2."""
    width_in = conv.stem_width
    for stage, (width, blocks) in enumerate(zip(conv.widths, conv.blocks, strict=True)):
        for block in range(blocks):
            yield f"{_BACKBONE}stages.{stage}.{block}.", width_in, width
            width_in = width


def _block_parameters(at: str, width_in: int, width_out: int) -> dict[str, Shape]:
    inner = _EXPAND * width_out
    shapes = norm_parameters(f"{at}pre_norm", width_in)
    shapes.update(_conv(f"{at}conv1_1x1", inner, width_in, 1))
    shapes.update(_conv(f"{at}conv2_kxk", inner, 1, 3))
    shapes.update(_conv(f"{at}conv3_1x1", width_out, inner, 1))
    if width_in != width_out:
        shapes.update(_conv(f"{at}shortcut.expand", width_out, width_in, 1))
    return shapes


def _block(
    spec: EncoderSpec, weights: Mapping[str, Tensor], at: str, x: Tensor, widens: bool
) -> Tensor:
    """Norm, 1x1, depthwise 3x3, 1x1, beside a shortcut. Shapes: f32[1, H, W, C], channels last."""
    stride = 2 if at.endswith(".0.") else 1
    skip = _shortcut(weights, at, x, widens) if stride == 2 else x
    x = layer_norm(spec.norm_eps, weights, f"{at}pre_norm", x)
    x = activate(spec.activation, affine(weights, f"{at}conv1_1x1", x)).permute(0, 3, 1, 2)
    x = _convolve(weights, f"{at}conv2_kxk", x, stride=stride, groups=x.shape[1])
    x = activate(spec.activation, x).permute(0, 2, 3, 1)
    return affine(weights, f"{at}conv3_1x1", x) + skip


def _shortcut(weights: Mapping[str, Tensor], at: str, x: Tensor, widens: bool) -> Tensor:
    """Mean of 3x3 with stride 2, over the values that are there: padding is not counted."""
    from torch.nn import functional

    mean = functional.avg_pool2d(
        x.permute(0, 3, 1, 2), kernel_size=3, stride=2, padding=1, count_include_pad=False
    ).permute(0, 2, 3, 1)
    return affine(weights, f"{at}shortcut.expand", mean) if widens else mean


def _convolve(
    weights: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1, groups: int = 1
) -> Tensor:
    from torch.nn import functional

    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return functional.conv2d(x, weight, bias, stride=stride, padding=1, groups=groups)
