"""CLIP as transformers stores it: B/32, B/16, L/14, L/14-336, H/14 and their kin.

Source: transformers, models/clip; openai/clip-vit-*, laion/CLIP-ViT-H-14-*.
"""

from __future__ import annotations

from typing import Literal, cast

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import Config
from mllm_export.embedder import EmbedderSpec, TextTowerSpec
from mllm_export.export.embedder_parts import UNUSED, EmbedderReading
from mllm_export.export.embedder_tokenizer import special_id
from mllm_export.export.embedders import _read


class Clip:
    """CLIPModel: both towers, a scale."""

    def claims(self, config: Config) -> bool:
        """A whole CLIP; a vision tower by itself has no text to compare with."""
        return config.text("model_type", "") == "clip"

    def read(self, checkpoint: Checkpoint) -> EmbedderReading:
        """Spec and weight map from CLIPConfig."""
        config = checkpoint.config
        width = config.positive("projection_dim", 512)
        spec = EmbedderSpec(
            family="clip",
            name=checkpoint.path.resolve().name,
            encoder=_read.read_encoder(checkpoint, "clip_vit"),
            head="class_token",
            embed_width=width,
            text=_text(checkpoint, _read.text_section(config), width),
            score="softmax",
            template="a photo of a {}.",
        )
        return EmbedderReading(
            spec=spec,
            weights=_read.weight_map(spec, drops=UNUSED, scalars=("logit_scale",)),
            scale="logit_scale",
        )


def _text(checkpoint: Checkpoint, text: Config, embed_width: int) -> TextTowerSpec:
    """Absent keys are CLIPTextConfig's defaults, which published files leave out."""
    end = special_id(checkpoint.path, "<|endoftext|>")
    act = _read.activation(text, "quick_gelu")
    return TextTowerSpec(
        kind="clip_text",
        width=text.positive("hidden_size", 512),
        layers=text.positive("num_hidden_layers", 12),
        heads=text.positive("num_attention_heads", 8),
        mlp_width=text.positive("intermediate_size", 2048),
        activation=cast('Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]', act),
        norm_eps=text.number("layer_norm_eps", 1e-5),
        vocab=text.positive("vocab_size", 49408),
        context_tokens=text.positive("max_position_embeddings", 77),
        embed_width=embed_width,
        bos_id=special_id(checkpoint.path, "<|startoftext|>"),
        eos_id=end,
        pad_id=end,
    )


EMBEDDER = Clip()
