"""The graphs of an encoder alone: image and text to embeddings of one width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mllm_export.embedder import EmbedderSpec, TextTowerSpec
from mllm_export.export.embedder_parts import HEAD, HEADS, TEXT, TEXT_TOWERS
from mllm_export.export.graph import Graph
from mllm_export.export.parts import ENCODERS
from mllm_export.export.stored import TOWER
from mllm_export.export.vision_parts import below

if TYPE_CHECKING:
    from torch import Tensor


def image_graph(spec: EmbedderSpec) -> Graph:
    """pixel_values f32[1, 3, S, S] to image_embeds f32[1, E], not normalised."""
    encoder, head = ENCODERS[spec.encoder.kind], HEADS[spec.head]

    def apply(weights: Mapping[str, Tensor], given: Sequence[Tensor]) -> Tensor:
        (pixels,) = given
        rows = encoder.apply(spec.encoder, below(TOWER, weights), pixels)
        return head.apply(spec.encoder, below(HEAD, weights), rows)

    size_px = spec.encoder.image.size_px
    return Graph(
        name="image",
        inputs={"pixel_values": (1, 3, size_px, size_px)},
        integer=False,
        output="image_embeds",
        output_shape=(1, spec.embed_width),
        parts=(
            (TOWER, encoder.parameters(spec.encoder)),
            (HEAD, head.parameters(spec.encoder, spec.embed_width)),
        ),
        apply=apply,
    )


def text_graph(spec: TextTowerSpec) -> Graph:
    """input_ids i64[1, T] to text_embeds f32[1, E], not normalised."""
    tower = TEXT_TOWERS[spec.kind]
    return Graph(
        name="text",
        inputs={"input_ids": (1, spec.context_tokens)},
        integer=True,
        output="text_embeds",
        output_shape=(1, spec.embed_width),
        parts=((TEXT, tower.parameters(spec)),),
        apply=lambda weights, given: tower.apply(spec, below(TEXT, weights), given[0]),
    )
