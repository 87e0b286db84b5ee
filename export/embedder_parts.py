"""The protocols of what an encoder alone is made of beside the encoder: heads and text towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mllm_export.catalog import Catalog
from mllm_export.config import Config
from mllm_export.embedder import EmbedderSpec, TextTowerSpec
from mllm_export.records import record
from mllm_export.spec import EncoderSpec
from mllm_export.weights import Drop, Shape, WeightMap

if TYPE_CHECKING:
    from torch import Tensor

    from mllm_export.checkpoint import Checkpoint

HEAD, TEXT = "head.", "text."
"""Stand before the published names of these parts in the graphs."""


class Head(Protocol):
    """From all of an encoder's rows to one embedding, and to the patches' own features.

    Parameter names are the published ones.
    """

    def parameters(self, spec: EncoderSpec, embed_width: int) -> Mapping[str, Shape]:
        """Published name to shape."""

    def apply(
        self, spec: EncoderSpec, weights: Mapping[str, Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows f32[1, T, D] of the last layer to f32[1, embed_width] and f32[1, N, D].

        The second is what the original calls its last hidden state, of the N patches alone: class
        tokens and the like are left out. See Encoder.apply for `weights`.
        """


class TextTower(Protocol):
    """Ids to an embedding. Parameter names are the published ones."""

    def parameters(self, spec: TextTowerSpec) -> Mapping[str, Shape]:
        """Published name to shape."""

    def apply(self, spec: TextTowerSpec, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Ids i64[1, context_tokens] to f32[1, embed_width]."""


@record
class EmbedderReading:
    """All that is known of such a checkpoint before a weight is read."""

    spec: EmbedderSpec
    weights: WeightMap
    scale: str = ""
    """Tensor with the logarithm of the scale of similarities; empty where there is none."""
    bias: str = ""
    """Tensor with the bias of similarities; empty where there is none."""
    notes: tuple[str, ...] = ()


class Embedder(Protocol):
    """A file in export/embedders: a published layout of image and text towers."""

    def claims(self, config: Config) -> bool:
        """Whether a config.json is this one's."""

    def read(self, checkpoint: Checkpoint) -> EmbedderReading:
        """Spec and weight map."""


HEADS: Catalog[Head] = Catalog("mllm_export.export.heads", "HEAD", "head")
TEXT_TOWERS: Catalog[TextTower] = Catalog(
    "mllm_export.export.text_towers", "TEXT_TOWER", "text tower"
)
EMBEDDERS: Catalog[Embedder] = Catalog("mllm_export.export.embedders", "EMBEDDER", "embedder")

UNUSED = (Drop(pattern="*.position_ids", why="a buffer of row numbers, recomputed"),)


def embedder_for(config: Config) -> Embedder | None:
    """The entry that claims a config, or None: then it is a family's, or nobody's."""
    return next((EMBEDDERS[n] for n in EMBEDDERS.names() if EMBEDDERS[n].claims(config)), None)
