"""CLIP's vision transformer, cut at the selected layer.

Source: huggingface/transformers, models/clip/modeling_clip.py, CLIPVisionTransformer; names and
shapes are those of openai/clip-vit-large-patch14-336.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.clip_images import Fit, image_spec, vision_section
from mllm_export.export.encoders._layers import (
    layer,
    layer_norm,
    layer_parameters,
    norm_parameters,
)
from mllm_export.spec import EncoderSpec, ImageSpec
from mllm_export.weights import Drop, Shape

if TYPE_CHECKING:
    from torch import Tensor

_MODEL_TYPES = {"clip", "clip_vision_model"}
_SIZE_PX = 224
"""Where the config names none. Source: transformers, CLIPVisionConfig, as are the others below."""

_EMBEDDINGS = "vision_model.embeddings."
_LAYERS = "vision_model.encoder.layers."
_PRE_NORM = "vision_model.pre_layrnorm"  # spelled so in every published file

_NEVER_USED = (
    Drop(pattern=f"{_EMBEDDINGS}position_ids", why="a buffer of row numbers, recomputed"),
    Drop(pattern="vision_model.post_layernorm.*", why="runs after the selected layer"),
    Drop(pattern="visual_projection.*", why="CLIP's contrastive head; image features skip it"),
    Drop(pattern="text_model.*", why="CLIP's text tower"),
    Drop(pattern="text_projection.*", why="CLIP's text tower"),
    Drop(pattern="logit_scale", why="CLIP's contrastive temperature"),
)


class ClipVit:
    """Patches, a learned class token and positions, a norm, then pre-norm transformer layers."""

    prefixes = ("",)

    def claims(self, config: Config) -> bool:
        """By the model_type of CLIP's vision tower, or of a whole CLIP."""
        return config.text("model_type", "") in _MODEL_TYPES

    def image(self, config: Config, fit: Fit) -> ImageSpec:
        """CLIP's own constants."""
        return image_spec(vision_section(config).positive("image_size", _SIZE_PX), fit)

    def read_spec(
        self, config: Config, image: ImageSpec, select_layer: int, keep_prefix: bool
    ) -> EncoderSpec:
        """Sizes from CLIPVisionConfig, or from the `vision_config` of a whole CLIPConfig.

        Published files may list only what differs from the defaults of CLIPVisionConfig, which
        are those of base-patch32.
        Raises: CheckpointError for a size that is not `image`'s; UnsupportedModelError for an
        activation that no CLIP has.
        """
        vision = vision_section(config)
        if vision.integer("num_channels", 3) != 3:
            raise UnsupportedModelError(f"{vision.file}: num_channels must be 3")
        size_px = vision.positive("image_size", _SIZE_PX)
        if size_px != image.size_px:
            raise CheckpointError(
                f"{vision.file}: image_size is {size_px}, "
                f"the preprocessing makes {image.size_px} px"
            )
        return EncoderSpec(
            kind="clip_vit",
            image=image,
            patch_px=vision.positive("patch_size", 32),
            width=vision.positive("hidden_size", 768),
            layers=vision.positive("num_hidden_layers", 12),
            heads=vision.positive("num_attention_heads", 12),
            mlp_width=vision.positive("intermediate_size", 3072),
            activation=_activation(vision),
            norm_eps=vision.number("layer_norm_eps", 1e-5),
            select_layer=select_layer,
            keep_prefix=keep_prefix,
        )

    def parameters(self, spec: EncoderSpec) -> Mapping[str, Shape]:
        """Embeddings, the first norm, and the layers that run."""
        width = spec.width
        shapes: dict[str, Shape] = {
            f"{_EMBEDDINGS}class_embedding": (width,),
            f"{_EMBEDDINGS}patch_embedding.weight": (width, 3, spec.patch_px, spec.patch_px),
            f"{_EMBEDDINGS}position_embedding.weight": (spec.grid**2 + 1, width),
            **norm_parameters(_PRE_NORM, width),
        }
        for index in range(spec.run_layers):
            shapes.update(layer_parameters(f"{_LAYERS}{index}.", spec))
        return shapes

    def drops(self, spec: EncoderSpec) -> tuple[Drop, ...]:
        """Layers past the cut, the norm after them, and what else a CLIP folder may hold."""
        past = (
            Drop(
                pattern=f"{_LAYERS}{layer}.*",
                why=f"layer {layer} runs after hidden state {spec.run_layers}, which is selected",
            )
            for layer in range(spec.run_layers, spec.layers)
        )
        return (*past, *_NEVER_USED)

    def apply(self, spec: EncoderSpec, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Pixels f32[1, 3, S, S] to features f32[1, tokens_out, width]."""
        import torch
        from torch.nn import functional

        patches = functional.conv2d(
            pixels, weights[f"{_EMBEDDINGS}patch_embedding.weight"], stride=spec.patch_px
        )
        prefix = weights[f"{_EMBEDDINGS}class_embedding"].reshape(1, 1, spec.width)
        rows = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        rows = rows + weights[f"{_EMBEDDINGS}position_embedding.weight"]
        rows = layer_norm(spec.norm_eps, weights, _PRE_NORM, rows)
        for index in range(spec.run_layers):
            rows = layer(spec, weights, f"{_LAYERS}{index}.", rows)
        return rows if spec.keep_prefix else rows[:, spec.prefix_tokens :]

    def tiny(self) -> EncoderSpec:
        """Three layers of width 64 on a 24 x 24 grid, of which two run."""
        image = ImageSpec(
            size_px=96,
            fit="pad",
            resample="bicubic",
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
            pad_rgb=(122, 116, 104),
        )
        return EncoderSpec(
            kind="clip_vit",
            image=image,
            patch_px=4,
            width=64,
            layers=3,
            heads=4,
            mlp_width=160,
            activation="quick_gelu",
            norm_eps=1e-5,
            select_layer=-2,
            keep_prefix=False,
        )


def _activation(vision: Config) -> Literal["quick_gelu", "gelu"]:
    name = vision.text("hidden_act", "quick_gelu")
    if name == "quick_gelu":
        return "quick_gelu"
    if name == "gelu":
        return "gelu"
    raise UnsupportedModelError(
        f"{vision.file}: hidden_act '{name}'; known for CLIP: quick_gelu, gelu"
    )


ENCODER = ClipVit()
