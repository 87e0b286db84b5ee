"""ViTamin: two stages of convolutions, then a transformer without class token.

Source: huggingface/pytorch-image-models, timm/models/vitamin.py; the release of Beckschen/ViTamin
holds the same tensors in open_clip's layout, below `visual.trunk.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.clip_images import Fit, image_spec
from mllm_export.export.encoders._layers import (
    activate,
    affine,
    attention,
    layer_norm,
    linear_parameters,
    norm_parameters,
)
from mllm_export.export.encoders._vitamin_stem import (
    resized_positions,
    stem_parameters,
    tokens_of,
)
from mllm_export.records import record
from mllm_export.spec import ConvStages, EncoderSpec, ImageSpec
from mllm_export.weights import Drop, Shape

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = ("", "visual.trunk.")
"""timm's layout, and open_clip's."""

_PATCH_PX = 16
_EPS = 1e-6
"""Of every norm, the ones inside the MLP too. Source: timm, models/vitamin.py, GeGluMlp."""
_NAME = re.compile(r"vitamin_(small|base|large|large2|xlarge)_(\d+)")


@record
class _Size:
    conv: tuple[int, int, int]
    """Channels of the stem and of the two stages."""
    width: int
    layers: int
    heads: int
    positions: bool = True


_SIZES = {
    "small": _Size(conv=(64, 64, 128), width=384, layers=14, heads=6),
    "base": _Size(conv=(128, 128, 256), width=768, layers=14, heads=12),
    "large": _Size(conv=(160, 160, 320), width=1024, layers=31, heads=16),
    "large2": _Size(conv=(160, 160, 320), width=1024, layers=31, heads=16),
    "xlarge": _Size(conv=(192, 192, 384), width=1152, layers=32, heads=16, positions=False),
}
"""Source: timm, models/vitamin.py, the registered models."""

_BLOCKS = (2, 4)

_NEVER_USED = (
    ("fc_norm.*", "the norm after the mean over tokens; token features skip it"),
    ("head.*", "the classifier; token features skip it"),
)
_OUTSIDE = (
    Drop(pattern="visual.head.*", why="the projection of the pooled image; token features skip it"),
    Drop(pattern="text.*", why="the text tower"),
    Drop(pattern="logit_scale", why="the contrastive temperature"),
    Drop(pattern="transformer.*", why="the text tower"),
    Drop(pattern="token_embedding.weight", why="the text tower"),
    Drop(pattern="positional_embedding", why="the text tower"),
    Drop(pattern="ln_final.*", why="the text tower"),
    Drop(pattern="text_projection", why="the text tower"),
    Drop(pattern="attn_mask", why="a buffer of the text tower, recomputed"),
)
"""What a whole release holds beside the trunk; S, B and L2 keep the text tower at the top."""


def timm_name(config: Config) -> str:
    """The architecture that a config of either layout names; empty where none does."""
    if "architecture" in config:
        return config.text("architecture")
    if "vision_cfg" in config:
        return config.section("vision_cfg").text("timm_model_name", "")
    return ""


def model_args(config: Config) -> Config:
    """What timm was told beside the name; `depth` and `img_size` are heeded.

    Source: timm, models/_hub.py, which saves them and passes them on when it loads.
    """
    return config.section("model_args") if "model_args" in config else Config({}, config.file)


class Vitamin:
    """S, B, L, L2 and XL at every published resolution."""

    prefixes = PREFIXES

    def claims(self, config: Config) -> bool:
        """By timm's name of the architecture, which both layouts carry."""
        return timm_name(config).startswith("vitamin_")

    def image(self, config: Config, fit: Fit) -> ImageSpec:
        """CLIP's constants at the size in the architecture's name, or in timm's `model_args`.

        Neither `image_size` nor `input_size` can be relied on: ViTamin-L-384.json says 336, and
        timm's vitamin_xlarge_336 carries the pretrained config of the 256 px model.
        """
        named = _published(config)[1]
        return image_spec(model_args(config).positive("img_size", named), fit)

    def read_spec(
        self, config: Config, image: ImageSpec, select_layer: int, keep_prefix: bool
    ) -> EncoderSpec:
        """Sizes by name; the stored table of positions is taken to be of `image`'s size.

        Raises: UnsupportedModelError for a name that is none of the published; CheckpointError
        for an image that is no whole number of patches.
        """
        del keep_prefix
        size, _ = _published(config)
        if image.size_px % _PATCH_PX:
            raise CheckpointError(
                f"{config.file}: an image of {image.size_px} px is no whole number of "
                f"{_PATCH_PX} px patches"
            )
        return EncoderSpec(
            kind="vitamin",
            image=image,
            patch_px=_PATCH_PX,
            width=size.width,
            layers=model_args(config).positive("depth", size.layers),
            heads=size.heads,
            mlp_width=2 * size.width,
            activation="gelu",
            norm_eps=_EPS,
            select_layer=select_layer,
            keep_prefix=False,
            prefix_tokens=0,
            conv=ConvStages(stem_width=size.conv[0], widths=size.conv[1:], blocks=_BLOCKS),
            position_grid=None if size.positions else 0,
        )

    def parameters(self, spec: EncoderSpec) -> Mapping[str, Shape]:
        """Convolutions, positions, and the blocks that run."""
        assert spec.conv is not None, "read_spec and tiny give convolutions"
        shapes = stem_parameters(spec, spec.conv)
        side = position_side(spec)
        if side:
            shapes["pos_embed"] = (1, side**2, spec.width)
        for index in range(spec.run_layers):
            shapes.update(_block_parameters(f"blocks.{index}.", spec))
        return shapes

    def drops(self, spec: EncoderSpec) -> tuple[Drop, ...]:
        """Blocks past the cut, norm and classifier, and what else a release holds."""
        past = tuple(
            (f"blocks.{index}.*", f"block {index} runs after the selected {spec.run_layers}")
            for index in range(spec.run_layers, spec.layers)
        )
        inside = (
            Drop(pattern=prefix + pattern, why=why)
            for prefix in PREFIXES
            for pattern, why in (*past, *_NEVER_USED)
        )
        return (*inside, *_OUTSIDE)

    def apply(self, spec: EncoderSpec, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Pixels f32[1, 3, S, S] to features f32[1, tokens_out, width]."""
        assert spec.conv is not None, "read_spec and tiny give convolutions"
        rows = tokens_of(spec, spec.conv, weights, pixels)
        side = position_side(spec)
        if side:
            rows = rows + resized_positions(weights["pos_embed"], side, spec.grid)
        for index in range(spec.run_layers):
            rows = _block(spec, weights, f"blocks.{index}.", rows)
        return rows

    def tiny(self) -> EncoderSpec:
        """Three blocks of width 64 on a 6 x 6 grid, of which two run."""
        return EncoderSpec(
            kind="vitamin",
            image=image_spec(96, "pad"),
            patch_px=_PATCH_PX,
            width=64,
            layers=3,
            heads=4,
            mlp_width=128,
            activation="gelu",
            norm_eps=_EPS,
            select_layer=-2,
            keep_prefix=False,
            prefix_tokens=0,
            conv=ConvStages(stem_width=16, widths=(16, 32), blocks=_BLOCKS),
        )


def position_side(spec: EncoderSpec) -> int:
    """Side of the stored table of positions, 0 where there is none."""
    return spec.grid if spec.position_grid is None else spec.position_grid


def _published(config: Config) -> tuple[_Size, int]:
    """The size that the config names, and its resolution in px."""
    name = timm_name(config)
    found = _NAME.fullmatch(name.split(".")[0])
    if found is None:
        raise UnsupportedModelError(
            f"{config.file}: architecture '{name}'; known: vitamin_SIZE_PIXELS with SIZE one of "
            f"{', '.join(_SIZES)}"
        )
    return _SIZES[found[1]], int(found[2])


def _block_parameters(at: str, spec: EncoderSpec) -> dict[str, Shape]:
    width, inner = spec.width, spec.mlp_width
    return {
        **norm_parameters(f"{at}norm1", width),
        **linear_parameters(f"{at}attn.qkv", width, 3 * width),
        **linear_parameters(f"{at}attn.proj", width, width),
        **norm_parameters(f"{at}norm2", width),
        **norm_parameters(f"{at}mlp.norm", width),
        **linear_parameters(f"{at}mlp.w0", width, inner),
        **linear_parameters(f"{at}mlp.w1", width, inner),
        **linear_parameters(f"{at}mlp.w2", inner, width),
    }


def _block(spec: EncoderSpec, weights: Mapping[str, Tensor], at: str, rows: Tensor) -> Tensor:
    """Attention, then a gated MLP with a second norm of its own."""
    normed = layer_norm(spec.norm_eps, weights, f"{at}norm1", rows)
    query, key, value = affine(weights, f"{at}attn.qkv", normed).chunk(3, dim=-1)
    mixed = attention(spec.heads, query, key, value)
    rows = rows + affine(weights, f"{at}attn.proj", mixed)
    normed = layer_norm(spec.norm_eps, weights, f"{at}norm2", rows)
    normed = layer_norm(spec.norm_eps, weights, f"{at}mlp.norm", normed)
    gate = activate(spec.activation, affine(weights, f"{at}mlp.w0", normed))
    return rows + affine(weights, f"{at}mlp.w2", gate * affine(weights, f"{at}mlp.w1", normed))


ENCODER = Vitamin()
