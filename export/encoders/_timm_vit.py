"""timm's plain vision transformer: DINOv2 with its scales per layer, SigLIP without.

Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py, VisionTransformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.config import Config
from mllm_export.export.encoders._layers import (
    activate,
    affine,
    attention,
    layer_norm,
    linear_parameters,
    norm_parameters,
)
from mllm_export.export.encoders._vitamin_stem import resized_positions
from mllm_export.records import record
from mllm_export.spec import EncoderSpec, ImageSpec
from mllm_export.weights import Drop, Shape

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = ("", "visual.trunk.")
"""timm's layout, and open_clip's."""

_CLASS, _REGISTERS, _POSITIONS = "cls_token", "reg_token", "pos_embed"

_NEVER_USED = (
    ("norm.*", "runs after the selected layer"),
    ("fc_norm.*", "runs after the selected layer"),
    ("attn_pool.*", "the pooling head; patch features skip it"),
    ("head.*", "the classifier; patch features skip it"),
    ("mask_token", "of the training"),
)
_OUTSIDE = (
    Drop(pattern="text.*", why="the text tower"),
    Drop(pattern="logit_*", why="the temperature and bias of the image-text score"),
)


@record
class VitSize:
    """What a published architecture is made of."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    size_px: int
    """Of the pretrained pictures, and so of the stored positions."""
    registers: int = 0


def architecture(config: Config) -> str:
    """The name that a config of timm's gives; empty where it is another library's."""
    return config.text("architecture", "")


def arguments(config: Config) -> Config:
    """What timm was told beside the name. Source: timm, models/_hub.py."""
    return config.section("model_args") if "model_args" in config else Config({}, config.file)


def read_size(config: Config, sizes: Mapping[str, VitSize]) -> VitSize:
    """A published size, with what `model_args` changes of it."""
    known = sizes[architecture(config)]
    given = arguments(config)
    width = given.positive("embed_dim", known.width)
    ratio = given.number("mlp_ratio", known.mlp_width / known.width)
    return VitSize(
        width=width,
        layers=given.positive("depth", known.layers),
        heads=given.positive("num_heads", known.heads),
        mlp_width=int(width * ratio),
        size_px=given.positive("img_size", known.size_px),
        registers=known.registers,
    )


def encoder_spec(
    kind: str, size: VitSize, config: Config, image: ImageSpec, select_layer: int, prefix: int
) -> EncoderSpec:
    """Sizes at `image`'s resolution; the stored positions are of the pretrained one."""
    patch_px = arguments(config).positive("patch_size", 14)
    return EncoderSpec(
        kind=kind,
        image=image,
        patch_px=patch_px,
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        mlp_width=size.mlp_width,
        activation="gelu",
        norm_eps=1e-6,
        select_layer=select_layer,
        keep_prefix=False,
        prefix_tokens=prefix,
        position_grid=size.size_px // patch_px,
    )


def vit_parameters(spec: EncoderSpec, registers: int, scaled: bool) -> dict[str, Shape]:
    """Embeddings and the blocks that run; `scaled` blocks have a factor per channel."""
    width, side = spec.width, spec.position_grid or spec.grid
    shapes: dict[str, Shape] = {}
    if spec.prefix_tokens:
        shapes[_CLASS] = (1, 1, width)
    if registers:
        shapes[_REGISTERS] = (1, registers, width)
    shapes[_POSITIONS] = (1, side**2, width)
    shapes["patch_embed.proj.weight"] = (width, 3, spec.patch_px, spec.patch_px)
    shapes["patch_embed.proj.bias"] = (width,)
    for index in range(spec.run_layers):
        shapes |= _block_parameters(f"blocks.{index}.", spec, scaled)
    return shapes


def _block_parameters(at: str, spec: EncoderSpec, scaled: bool) -> dict[str, Shape]:
    width = spec.width
    scales: dict[str, Shape] = {f"{at}{one}.gamma": (width,) for one in ("ls1", "ls2")}
    return {
        **norm_parameters(f"{at}norm1", width),
        **linear_parameters(f"{at}attn.qkv", width, 3 * width),
        **linear_parameters(f"{at}attn.proj", width, width),
        **norm_parameters(f"{at}norm2", width),
        **linear_parameters(f"{at}mlp.fc1", width, spec.mlp_width),
        **linear_parameters(f"{at}mlp.fc2", spec.mlp_width, width),
        **(scales if scaled else {}),
    }


def vit_drops(spec: EncoderSpec) -> tuple[Drop, ...]:
    """Blocks past the cut, the norm and heads after them, and a text tower beside them."""
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


def vit_features(spec: EncoderSpec, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """Patches of the selected block, without norm. Shapes: f32[1, 3, S, S] -> f32[1, T, D]."""
    import torch
    from torch.nn import functional

    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    rows = functional.conv2d(pixels, kernel, bias, stride=spec.patch_px).flatten(2).transpose(1, 2)
    side = spec.position_grid or spec.grid
    rows = rows + resized_positions(weights[_POSITIONS], side, spec.grid)
    before = [weights[name] for name in (_CLASS, _REGISTERS) if name in weights]
    if before:
        rows = torch.cat([*before, rows], dim=1)
    for index in range(spec.run_layers):
        rows = _block(spec, weights, f"blocks.{index}.", rows)
    return rows[:, spec.prefix_tokens :] if before else rows


def _block(spec: EncoderSpec, weights: Mapping[str, Tensor], at: str, rows: Tensor) -> Tensor:
    normed = layer_norm(spec.norm_eps, weights, f"{at}norm1", rows)
    query, key, value = affine(weights, f"{at}attn.qkv", normed).chunk(3, dim=2)
    mixed = affine(weights, f"{at}attn.proj", attention(spec.heads, query, key, value, None))
    rows = rows + _scaled(weights, f"{at}ls1.gamma", mixed)
    normed = layer_norm(spec.norm_eps, weights, f"{at}norm2", rows)
    inner = activate(spec.activation, affine(weights, f"{at}mlp.fc1", normed))
    return rows + _scaled(weights, f"{at}ls2.gamma", affine(weights, f"{at}mlp.fc2", inner))


def _scaled(weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return rows * weights[name] if name in weights else rows
