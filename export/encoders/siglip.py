"""SigLIP's vision transformer, cut at the selected layer.

Source: huggingface/transformers, models/siglip/modeling_siglip.py, SiglipVisionTransformer; names
and shapes are those of google/siglip-so400m-patch14-384 and google/siglip-base-patch16-224.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.clip_images import Fit, image_spec, vision_section
from mllm_export.export.encoders._layers import layer, layer_parameters
from mllm_export.spec import EncoderSpec, ImageSpec
from mllm_export.weights import Drop, Shape

if TYPE_CHECKING:
    from torch import Tensor

_MODEL_TYPES = {"siglip", "siglip_vision_model"}
_HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation. Source: google/siglip-*, preprocessor_config.json."""
_SIZE_PX = 224
"""Where the config names none. Source: transformers, SiglipVisionConfig."""

_EMBEDDINGS = "vision_model.embeddings."
_LAYERS = "vision_model.encoder.layers."

_NEVER_USED = (
    Drop(pattern=f"{_EMBEDDINGS}position_ids", why="a buffer of row numbers, recomputed"),
    Drop(pattern="vision_model.post_layernorm.*", why="runs after the selected layer"),
    Drop(pattern="vision_model.head.*", why="the pooling head; patch features skip it"),
    Drop(pattern="text_model.*", why="SigLIP's text tower"),
    Drop(pattern="logit_*", why="SigLIP's temperature and bias of the image-text score"),
)


class Siglip:
    """Patches with a bias and positions, no class token, no first norm; GELU by tanh."""

    prefixes = ("",)

    def claims(self, config: Config) -> bool:
        """By the model_type of SigLIP's vision tower, or of a whole SigLIP."""
        return config.text("model_type", "") in _MODEL_TYPES

    def image(self, config: Config, fit: Fit) -> ImageSpec:
        """Both sides resized, whatever the shape, unless a square was padded before."""
        size_px = vision_section(config).positive("image_size", _SIZE_PX)
        own: Fit = "stretch" if fit == "crop" else fit
        return image_spec(size_px, own, _HALF, _HALF)

    def read_spec(
        self, config: Config, image: ImageSpec, select_layer: int, keep_prefix: bool
    ) -> EncoderSpec:
        """Sizes from SiglipVisionConfig, or from the `vision_config` of a whole SiglipConfig.

        Published files list only what differs from the defaults of SiglipVisionConfig, which are
        those of base-patch16-224. There is no prefix token, so `keep_prefix` changes nothing.
        Raises: CheckpointError for a size that is not `image`'s; UnsupportedModelError for an
        activation that no SigLIP has.
        """
        del keep_prefix
        vision = vision_section(config)
        if vision.integer("num_channels", 3) != 3:
            raise UnsupportedModelError(f"{vision.file}: num_channels must be 3")
        size_px = vision.positive("image_size", _SIZE_PX)
        if size_px != image.size_px:
            raise CheckpointError(
                f"{vision.file}: image_size is {size_px}, "
                f"the preprocessing makes {image.size_px} px"
            )
        activation = vision.text("hidden_act", "gelu_pytorch_tanh")
        if activation != "gelu_pytorch_tanh":
            raise UnsupportedModelError(
                f"{vision.file}: hidden_act '{activation}'; known for SigLIP: gelu_pytorch_tanh"
            )
        return EncoderSpec(
            kind="siglip",
            image=image,
            patch_px=vision.positive("patch_size", 16),
            width=vision.positive("hidden_size", 768),
            layers=vision.positive("num_hidden_layers", 12),
            heads=vision.positive("num_attention_heads", 12),
            mlp_width=vision.positive("intermediate_size", 3072),
            activation="gelu_pytorch_tanh",
            norm_eps=vision.number("layer_norm_eps", 1e-6),
            select_layer=select_layer,
            keep_prefix=False,
            prefix_tokens=0,
        )

    def parameters(self, spec: EncoderSpec) -> Mapping[str, Shape]:
        """Embeddings and the layers that run."""
        width = spec.width
        shapes: dict[str, Shape] = {
            f"{_EMBEDDINGS}patch_embedding.weight": (width, 3, spec.patch_px, spec.patch_px),
            f"{_EMBEDDINGS}patch_embedding.bias": (width,),
            f"{_EMBEDDINGS}position_embedding.weight": (spec.grid**2, width),
        }
        for index in range(spec.run_layers):
            shapes.update(layer_parameters(f"{_LAYERS}{index}.", spec))
        return shapes

    def drops(self, spec: EncoderSpec) -> tuple[Drop, ...]:
        """Layers past the cut, the norm and head after them, and SigLIP's text side."""
        past = (
            Drop(
                pattern=f"{_LAYERS}{index}.*",
                why=f"layer {index} runs after hidden state {spec.run_layers}, which is selected",
            )
            for index in range(spec.run_layers, spec.layers)
        )
        return (*past, *_NEVER_USED)

    def apply(self, spec: EncoderSpec, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Pixels f32[1, 3, S, S] to features f32[1, tokens_out, width]."""
        from torch.nn import functional

        patches = functional.conv2d(
            pixels,
            weights[f"{_EMBEDDINGS}patch_embedding.weight"],
            weights[f"{_EMBEDDINGS}patch_embedding.bias"],
            stride=spec.patch_px,
        )
        rows = patches.flatten(2).transpose(1, 2)
        rows = rows + weights[f"{_EMBEDDINGS}position_embedding.weight"]
        for index in range(spec.run_layers):
            rows = layer(spec, weights, f"{_LAYERS}{index}.", rows)
        return rows

    def tiny(self) -> EncoderSpec:
        """Three layers of width 64 on a 24 x 24 grid, of which two run."""
        return EncoderSpec(
            kind="siglip",
            image=image_spec(96, "pad", _HALF, _HALF),
            patch_px=4,
            width=64,
            layers=3,
            heads=4,
            mlp_width=160,
            activation="gelu_pytorch_tanh",
            norm_eps=1e-6,
            select_layer=-2,
            keep_prefix=False,
            prefix_tokens=0,
        )


ENCODER = Siglip()
