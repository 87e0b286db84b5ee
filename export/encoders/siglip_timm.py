"""SigLIP as timm and open_clip publish it, cut at the selected block; GELU by the error function.

Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py,
vit_so400m_patch14_siglip_384.
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

_HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation. Source: timm, the pretrained config of every SigLIP."""

_SIZES = {
    f"vit_so400m_patch14_siglip_{size_px}": VitSize(
        width=1152, layers=27, heads=16, mlp_width=4304, size_px=size_px
    )
    for size_px in (224, 378, 384)
}


class SiglipTimm:
    """Patches with positions, no class token, no scales per layer."""

    prefixes = PREFIXES

    def claims(self, config: Config) -> bool:
        """By timm's name of the architecture."""
        return architecture(config) in _SIZES

    def image(self, config: Config, fit: Fit) -> ImageSpec:
        """0.5 everywhere, at the pretrained size."""
        return image_spec(read_size(config, _SIZES).size_px, fit, _HALF, _HALF)

    def read_spec(
        self, config: Config, image: ImageSpec, select_layer: int, keep_prefix: bool
    ) -> EncoderSpec:
        """Sizes by name; there is no prefix token."""
        del keep_prefix
        size = read_size(config, _SIZES)
        return encoder_spec("siglip_timm", size, config, image, select_layer, 0)

    def parameters(self, spec: EncoderSpec) -> Mapping[str, Shape]:
        """Embeddings and the blocks that run."""
        return vit_parameters(spec, registers=0, scaled=False)

    def drops(self, spec: EncoderSpec) -> tuple[Drop, ...]:
        """Blocks past the cut, the pooling head, and the text tower."""
        return vit_drops(spec)

    def apply(self, spec: EncoderSpec, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Pixels f32[1, 3, S, S] to features f32[1, tokens_out, width]."""
        return vit_features(spec, weights, pixels)

    def tiny(self) -> EncoderSpec:
        """Three blocks of width 64, two of which run, on a 6 x 6 grid."""
        return EncoderSpec(
            kind="siglip_timm",
            image=image_spec(90, "stretch", _HALF, _HALF),
            patch_px=14,
            width=64,
            layers=3,
            heads=4,
            mlp_width=160,
            activation="gelu",
            norm_eps=1e-6,
            select_layer=-2,
            keep_prefix=False,
            prefix_tokens=0,
            position_grid=6,
        )


ENCODER = SiglipTimm()
