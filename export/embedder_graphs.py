"""The graphs of an encoder alone: image and text to embeddings of one width, image to patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_export.checkpoint import Checkpoint
from mllm_export.embedder import PATCHES, TEXT_EMBEDS, EmbedderSpec, TextTowerSpec
from mllm_export.export.artifact import graph_readers
from mllm_export.export.embedder_parts import HEAD, HEADS, TEXT, TEXT_TOWERS, EmbedderReading
from mllm_export.export.graph import Graph, resizes_positions
from mllm_export.export.parts import ENCODERS, Reader
from mllm_export.export.stored import TOWER
from mllm_export.export.vision_parts import below
from mllm_export.plan import Role
from mllm_export.records import record
from mllm_export.spec import IMAGE_EMBEDS

if TYPE_CHECKING:
    from torch import Tensor


def embedder_graph(spec: EmbedderSpec, role: Role) -> Graph:
    """The graph of one artifact."""
    if role == "text_tower":
        assert spec.text is not None, "a text tower is planned where there is one"
        return text_graph(spec.text)
    return image_graph(spec)


@record
class EmbedderSource:
    """Graphs and weights of an encoder alone; see `GraphSource`."""

    folder: Path
    reading: EmbedderReading

    def graph(self, role: Role) -> Graph:
        """Image tower with its head, or text tower."""
        return embedder_graph(self.reading.spec, role)

    def readers(self, role: Role) -> tuple[Reader, ...]:
        """Of each part of that graph."""
        checkpoint = Checkpoint(self.folder)
        return graph_readers(checkpoint, self.reading.weights, self.graph(role))


def image_graph(spec: EmbedderSpec) -> Graph:
    """pixel_values f32[1, 3, S, S] to image_embeds f32[1, E] and patches f32[1, N, D].

    Neither is normalised. Both in one graph: the patches are made on the way to the embedding.
    """
    encoder, head = ENCODERS[spec.encoder.kind], HEADS[spec.head]

    def apply(weights: Mapping[str, Tensor], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (pixels,) = given
        rows = encoder.apply(spec.encoder, below(TOWER, weights), pixels)
        return head.apply(spec.encoder, below(HEAD, weights), rows)

    size_px = spec.encoder.image.size_px
    return Graph(
        name="image",
        inputs={"pixel_values": (1, 3, size_px, size_px)},
        images={"pixel_values": spec.encoder.image},
        resizes_positions=resizes_positions(spec.encoder),
        outputs={IMAGE_EMBEDS: (1, spec.embed_width), PATCHES: (1, *spec.patch_shape)},
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
        vocab=spec.vocab,
        outputs={TEXT_EMBEDS: (1, spec.embed_width)},
        parts=((TEXT, tower.parameters(spec)),),
        apply=lambda weights, given: (tower.apply(spec, below(TEXT, weights), given[0]),),
    )
