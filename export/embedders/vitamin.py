"""ViTamin alone: timm's layout (image only), or the authors' release in open_clip's (both towers).

Source: timm, models/vitamin.py; Beckschen/ViTamin, ViTamin/open_clip (model.py, model_configs).
"""

from __future__ import annotations

from collections.abc import Mapping

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import Config
from mllm_export.embedder import EmbedderSpec, TextTowerSpec
from mllm_export.export.embedder_parts import EmbedderReading
from mllm_export.export.embedder_tokenizer import special_id
from mllm_export.export.embedders import _read
from mllm_export.export.parts import ENCODERS
from mllm_export.export.tower_choice import TABLE, table_notes, with_table
from mllm_export.spec import EncoderSpec
from mllm_export.weights import Drop, Shape

_TRUNK = "visual.trunk."
_BUFFER = Drop(pattern="*attn_mask", why="a buffer of the text tower, recomputed")
_TOKENS = ("<|startoftext|>", "<|endoftext|>")


class VitaminPair:
    """Told apart by the config: timm names an architecture, open_clip a vision_cfg."""

    def claims(self, config: Config) -> bool:
        """What the encoder claims."""
        return ENCODERS["vitamin"].claims(config)

    def read(self, checkpoint: Checkpoint) -> EmbedderReading:
        """Spec and weight map; the stored table of positions tells its own size."""
        shapes = checkpoint.shapes(False)
        encoder = _read.read_encoder(checkpoint, "vitamin")
        is_pair = "vision_cfg" in checkpoint.config
        table = shapes.get(f"{_TRUNK if is_pair else ''}{TABLE}")
        encoder = with_table(encoder, table)
        notes = table_notes(encoder)
        if is_pair:
            return _pair(checkpoint, encoder, shapes, notes)
        head = shapes.get("head.weight", (encoder.width, encoder.width))
        spec = EmbedderSpec(
            family="vitamin",
            name=checkpoint.path.resolve().name,
            encoder=encoder,
            head="mean_norm_bias",
            embed_width=head[0],
            text=None,
            score="softmax",
            template="a photo of a {}.",
        )
        return EmbedderReading(spec=spec, weights=_read.weight_map(spec), notes=notes)


def _pair(
    checkpoint: Checkpoint,
    encoder: EncoderSpec,
    shapes: Mapping[str, Shape],
    notes: tuple[str, ...],
) -> EmbedderReading:
    config = checkpoint.config
    width = config.positive("embed_dim")
    spec = EmbedderSpec(
        family="vitamin",
        name=checkpoint.path.resolve().name,
        encoder=encoder,
        head="mean_norm",
        embed_width=width,
        text=_text(checkpoint, config.section("text_cfg"), width),
        score="softmax",
        template="a photo of a {}.",
    )
    weights = _read.weight_map(
        spec,
        prefix=_TRUNK,
        # S, B and L2 keep the text tower at the top, the others below `text.`.
        text_prefix="text." if "text.token_embedding.weight" in shapes else "",
        names={"head.weight": "visual.head.proj.weight"},
        drops=(_BUFFER,),
        scalars=("logit_scale",),
    )
    return EmbedderReading(spec=spec, weights=weights, scale="logit_scale", notes=notes)


def _text(checkpoint: Checkpoint, text: Config, embed_width: int) -> TextTowerSpec:
    width = text.positive("width")
    start, end = (special_id(checkpoint.path, token) for token in _TOKENS)
    return TextTowerSpec(
        kind="open_clip_text",
        width=width,
        layers=text.positive("layers"),
        heads=text.positive("heads"),
        mlp_width=4 * width,
        activation="gelu",
        norm_eps=1e-5,
        vocab=text.positive("vocab_size", 49408),
        context_tokens=text.positive("context_length", 77),
        embed_width=embed_width,
        bos_id=start,
        eos_id=end,
        pad_id=0,
    )


EMBEDDER = VitaminPair()
