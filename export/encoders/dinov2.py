"""DINOv2 as timm publishes it, with registers or without, cut at the selected block.

Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py,
vit_large_patch14_reg4_dinov2 and its sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.config import Config
from mllm_export.export.clip_images import Fit, image_spec
from mllm_export.export.encoders._timm_vit import (
    PREFIXES,
    VitSize,
    architecture,
    encoder_spec,
    read_size,
    vit_drops,
    vit_features,
    vit_parameters,
)
from mllm_export.spec import EncoderSpec, ImageSpec
from mllm_export.weights import Drop, Shape

if TYPE_CHECKING:
    from torch import Tensor

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's. Source: timm, data/constants.py."""

_SIZES = {
    f"vit_{name}_patch14_reg4_dinov2": VitSize(
        width=width, layers=layers, heads=heads, mlp_width=4 * width, size_px=518, registers=4
    )
    for name, width, layers, heads in (
        ("small", 384, 12, 6),
        ("base", 768, 12, 12),
        ("large", 1024, 24, 16),
    )
}


class Dinov2:
    """Positions of the patches alone; class token and registers go in front, without one."""

    prefixes = PREFIXES

    def claims(self, config: Config) -> bool:
        """By timm's name of the architecture."""
        return architecture(config) in _SIZES

    def image(self, config: Config, fit: Fit) -> ImageSpec:
        """ImageNet's constants at the pretrained size."""
        return image_spec(read_size(config, _SIZES).size_px, fit, _MEAN, _STD)

    def read_spec(
        self, config: Config, image: ImageSpec, select_layer: int, keep_prefix: bool
    ) -> EncoderSpec:
        """Sizes by name; class token and registers are never features."""
        del keep_prefix
        size = read_size(config, _SIZES)
        return encoder_spec("dinov2", size, config, image, select_layer, 1 + size.registers)

    def parameters(self, spec: EncoderSpec) -> Mapping[str, Shape]:
        """Embeddings and the blocks that run."""
        return vit_parameters(spec, registers=spec.prefix_tokens - 1, scaled=True)

    def drops(self, spec: EncoderSpec) -> tuple[Drop, ...]:
        """Blocks past the cut, and what follows them."""
        return vit_drops(spec)

    def apply(self, spec: EncoderSpec, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Pixels f32[1, 3, S, S] to features f32[1, tokens_out, width]."""
        return vit_features(spec, weights, pixels)

    def tiny(self) -> EncoderSpec:
        """Three blocks of width 64, two of which run; positions of 7 x 7 resized to 6 x 6."""
        return EncoderSpec(
            kind="dinov2",
            image=image_spec(90, "stretch", _MEAN, _STD),
            patch_px=14,
            width=64,
            layers=3,
            heads=4,
            mlp_width=256,
            activation="gelu",
            norm_eps=1e-6,
            select_layer=-2,
            keep_prefix=False,
            prefix_tokens=5,
            position_grid=7,
        )


ENCODER = Dinov2()
