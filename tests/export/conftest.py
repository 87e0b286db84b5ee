"""Originals of the vision side: transformers' CLIP, and projectors written from the papers' code.

The projectors here follow the authors' module names, so that published tensors load strictly;
they share no line with the exporter's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.spec import EncoderSpec, ProjectorSpec, VisionSpec

torch.set_num_threads(2)
# The exporter traces thousands of records that pytest would keep for every test.
logging.getLogger("torch.__trace").propagate = False


class Ldp(nn.Module):
    """MobileVLM's LDPNetProjector."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Identity(), nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.mb_block = nn.Sequential(
            nn.Identity(), _InvertedResidual(width, 1), _InvertedResidual(width, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mlp(x)
        side = int(x.shape[1] ** 0.5)
        x = x.permute(0, 2, 1).reshape(x.shape[0], -1, side, side)
        return self.mb_block(x).flatten(2).permute(0, 2, 1)


class _ChannelNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _SqueezeExcitation(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = nn.functional.adaptive_avg_pool2d(x, 1)
        return nn.functional.hardsigmoid(self.fc2(nn.functional.relu(self.fc1(scale)))) * x


class _InvertedResidual(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        from torchvision.models._utils import _make_divisible

        super().__init__()
        depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, _ChannelNorm(width), nn.Hardswish()),
            _SqueezeExcitation(width, _make_divisible(width // 4, 8)),
            nn.Sequential(
                nn.Conv2d(width, width, 1, bias=False), _ChannelNorm(width), nn.Identity()
            ),
        )
        self.has_residual = stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x) if self.has_residual else self.block(x)


class LdpV2(nn.Module):
    """MobileVLM V2's LDPNetV2Projector."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.mlp = nn.Sequential(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width))
        self.dwn = nn.AdaptiveAvgPool2d((12, 12))
        self.peg = nn.Module()
        self.peg.peg = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mlp.mlp(x)
        side = int(x.shape[1] ** 0.5)
        x = self.dwn(x.transpose(1, 2).reshape(x.shape[0], -1, side, side))
        return (self.peg.peg(x) + x).flatten(2).transpose(1, 2)


class _Tokens(nn.Module):
    """A module of maps, applied to rows."""

    def __init__(self, **inner: nn.Module) -> None:
        super().__init__()
        ((self.name, module),) = inner.items()
        self.add_module(self.name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = int(x.shape[1] ** 0.5)
        grid = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)
        made = self.get_submodule(self.name)(grid)
        return (made + grid if self.name == "peg" else made).flatten(2).transpose(1, 2)


def _fused_ldpnet(a: int, b: int) -> nn.Module:
    """Cobra's FusedLDPProjector."""
    return nn.Sequential(
        nn.Linear(a, 4 * a),
        nn.GELU(),
        nn.Linear(4 * a, b),
        _Tokens(dwn=nn.Sequential(nn.AdaptiveAvgPool2d((14, 14)))),
        _Tokens(peg=nn.Sequential(nn.Conv2d(b, b, 3, 1, 1, groups=b))),
    )


_PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {
    "fused_ldpnet": _fused_ldpnet,
    "ldp": Ldp,
    "ldpv2": LdpV2,
    "mlp2x_gelu": lambda a, b: nn.Sequential(nn.Linear(a, b), nn.GELU(), nn.Linear(b, b)),
    "linear": nn.Linear,
    "fused_gelu_mlp": lambda a, b: nn.Sequential(
        nn.Linear(a, 4 * a), nn.GELU(), nn.Linear(4 * a, b), nn.GELU(), nn.Linear(b, b)
    ),
}


@dataclass(frozen=True)
class Vision:
    """An original tower and projector with random weights, and their specs."""

    encoder: EncoderSpec
    projector: ProjectorSpec
    tower: CLIPVisionModel
    head: nn.Module

    @property
    def spec(self) -> VisionSpec:
        return VisionSpec(encoders=(self.encoder,), projector=self.projector)

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        chosen = states[self.encoder.select_layer]
        return chosen if self.encoder.keep_prefix else chosen[:, 1:]

    @torch.no_grad()
    def embeddings(self, pixels: torch.Tensor) -> np.ndarray:
        return self.head(self.features(pixels))[0].numpy()

    def pixels(self, seed: int = 0) -> torch.Tensor:
        size = self.encoder.image.size_px
        return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))

    def read_tower(self, name: str) -> np.ndarray:
        return self.tower.state_dict()[name].numpy()

    def read_projector(self, name: str) -> np.ndarray:
        return self.head.state_dict()[name].numpy()

    def tower_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.tower.state_dict().items()}

    def projector_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.head.state_dict().items()}


def original_tower(spec: EncoderSpec) -> CLIPVisionModel:
    """transformers' tower with weights at a scale where faults show."""
    config = CLIPVisionConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.image.size_px,
        patch_size=spec.patch_px,
        hidden_act=spec.activation,
        layer_norm_eps=spec.norm_eps,
    )
    return rough(CLIPVisionModel(config)).eval()


def rough(module: nn.Module, seed: int = 0) -> nn.Module:
    """Linear and convolution weights 1.5 / sqrt(fan in), norms 1 + 0.3 n, biases 0.2 n."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1 and "position" not in name:
                value.copy_(1.5 * noise / value[0].numel() ** 0.5)
            elif "embedding" in name:
                value.copy_(0.7 * noise)
            elif name.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            else:
                value.copy_(0.2 * noise)
    return module


def make_vision(kind: str, out_width: int = 96, **changes: object) -> Vision:
    encoder = replace(ENCODERS["clip_vit"].tiny(), **changes)
    projector = PROJECTORS[kind].spec(encoder.width, out_width, encoder.tokens_out)
    head = rough(_PROJECTORS[kind](encoder.width, out_width), seed=1).eval()
    return Vision(encoder=encoder, projector=projector, tower=original_tower(encoder), head=head)


def worst_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return float(((ours * theirs).sum(-1) / norms).min())


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.fixture(scope="session")
def vision() -> Callable[..., Vision]:
    """vision(projector, out_width=96, **fields of EncoderSpec) makes an original."""
    return make_vision


@pytest.fixture(scope="session")
def rough_weights() -> Callable[[nn.Module], nn.Module]:
    """Fills a module at a scale where faults show."""
    return rough


@pytest.fixture(scope="session")
def original_clip() -> Callable[[EncoderSpec], CLIPVisionModel]:
    return original_tower


@pytest.fixture(scope="session")
def cosine() -> Callable[[np.ndarray, np.ndarray], float]:
    return worst_cosine


@pytest.fixture(scope="session")
def error() -> Callable[[np.ndarray, np.ndarray], float]:
    return relative_error
