"""SigLIP as transformers stores it: base, large, so400m.

Source: transformers, models/siglip; google/siglip-*.
"""

from __future__ import annotations

from typing import Literal, cast

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import Config
from mllm_export.embedder import EmbedderSpec, TextTowerSpec
from mllm_export.export.embedder_parts import UNUSED, EmbedderReading
from mllm_export.export.embedder_tokenizer import special_id
from mllm_export.export.embedders import _read


class SiglipPair:
    """SiglipModel: both towers, a scale and a bias, each label scored by itself."""

    def claims(self, config: Config) -> bool:
        """A whole SigLIP."""
        return config.text("model_type", "") == "siglip"

    def read(self, checkpoint: Checkpoint) -> EmbedderReading:
        """Spec and weight map from SiglipConfig."""
        encoder = _read.read_encoder(checkpoint, "siglip")
        text = _read.text_section(checkpoint.config)
        spec = EmbedderSpec(
            family="siglip",
            name=checkpoint.path.resolve().name,
            encoder=encoder,
            head="attention_pool",
            embed_width=encoder.width,
            text=_text(checkpoint, text),
            score="sigmoid",
            template="This is a photo of {}.",
        )
        scalars = ("logit_scale", "logit_bias")
        return EmbedderReading(
            spec=spec,
            weights=_read.weight_map(spec, drops=UNUSED, scalars=scalars),
            scale="logit_scale",
            bias="logit_bias",
        )


def _text(checkpoint: Checkpoint, text: Config) -> TextTowerSpec:
    """Absent keys are SiglipTextConfig's defaults. The end token pads too."""
    width = text.positive("hidden_size", 768)
    end = special_id(checkpoint.path, "</s>")
    act = _read.activation(text, "gelu_pytorch_tanh")
    return TextTowerSpec(
        kind="siglip_text",
        width=width,
        layers=text.positive("num_hidden_layers", 12),
        heads=text.positive("num_attention_heads", 12),
        mlp_width=text.positive("intermediate_size", 3072),
        activation=cast('Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]', act),
        norm_eps=text.number("layer_norm_eps", 1e-6),
        vocab=text.positive("vocab_size", 32000),
        context_tokens=text.positive("max_position_embeddings", 64),
        embed_width=text.positive("projection_size", width),
        bos_id=None,
        eos_id=end,
        pad_id=end,
    )


EMBEDDER = SiglipPair()
