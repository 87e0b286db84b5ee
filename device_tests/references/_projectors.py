"""MobileVLM's projectors in plain torch modules, parameters named as the authors name them.

Written from the authors' description alone, apart from the exporter's own modules, so that a
mistake in one is not in both.
Source: Meituan-AutoML/MobileVLM, mobilevlm/model/vision_projector.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _to_map(rows: Tensor) -> Tensor:
    """Shapes: [B, g*g, C] -> [B, C, g, g], row by row."""
    side = int(rows.shape[1] ** 0.5 + 0.5)
    return rows.permute(0, 2, 1).reshape(rows.shape[0], -1, side, side)


def _to_rows(grid: Tensor) -> Tensor:
    return grid.flatten(2).permute(0, 2, 1)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, grid: Tensor) -> Tensor:
        """Shapes: [B, C, H, W] -> the same."""
        return super().forward(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _divisible_by_8(width / 4)
        self.fc1 = nn.Conv2d(width, inner, 1)
        self.fc2 = nn.Conv2d(inner, width, 1)

    def forward(self, grid: Tensor) -> Tensor:
        share = self.fc2(functional.relu(self.fc1(grid.mean((2, 3), keepdim=True))))
        return grid * functional.hardsigmoid(share)


def _divisible_by_8(value: float) -> int:
    """Nearest multiple of 8 that loses at most a tenth. Source: torchvision's _make_divisible."""
    nearest = max(8, int(value + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * value else nearest


class _InvertedResidual(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, _ChannelNorm(width), nn.Hardswish()),
            _SqueezeExcite(width),
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), _ChannelNorm(width)),
        )
        self.skips = stride == 1

    def forward(self, grid: Tensor) -> Tensor:
        changed: Tensor = self.block(grid)
        return grid + changed if self.skips else changed


class Ldp(nn.Module):
    """V1. Shapes: [B, 576, in] -> [B, 144, out]."""

    prefix = "model.mm_projector.model."

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Identity(), nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.mb_block = nn.Sequential(
            nn.Identity(), _InvertedResidual(width, 1), _InvertedResidual(width, 2)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Two linear layers, then two inverted residuals, the second of stride 2."""
        return _to_rows(self.mb_block(_to_map(self.mlp(features))))


class _Named(nn.Module):
    """A module under one more name, as the authors nest theirs."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)
        self._name = name

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.get_submodule(self._name)(values)
        return out


class LdpV2(nn.Module):
    """V2. Shapes: [B, g*g, in] -> [B, 144, out]."""

    prefix = "model.mm_projector."

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width))
        self.mlp = _Named("mlp", layers)
        convolution = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.peg = _Named("peg", nn.Sequential(convolution))

    def forward(self, features: Tensor) -> Tensor:
        """Two linear layers, a mean over windows, a depthwise convolution beside it."""
        pooled = functional.adaptive_avg_pool2d(_to_map(self.mlp(features)), (12, 12))
        return _to_rows(self.peg(pooled) + pooled)


class Mlp2(nn.Sequential):
    """LLaVA-1.5's. Shapes: [B, T, in] -> [B, T, out]."""

    prefix = "model.mm_projector."

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width))


class Line(nn.Linear):
    """LLaVA's first. Shapes: [B, T, in] -> [B, T, out]."""

    prefix = "model.mm_projector."


PROJECTORS: dict[str, type[Ldp] | type[LdpV2] | type[Mlp2] | type[Line]] = {
    "ldpnet": Ldp,
    "ldpnetv2": LdpV2,
    "mlp2x_gelu": Mlp2,
    "linear": Line,
}
"""By the published mm_projector_type."""


@torch.inference_mode()
def project(module: nn.Module, features: Tensor) -> Tensor:
    """Run a few pictures at a time. Shapes: [B, tokens_in, in] -> f32[B, tokens_out, out]."""
    return torch.cat([module(part) for part in torch.split(features, 8)]).float()
