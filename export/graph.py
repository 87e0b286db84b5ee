"""What a graph computes, free of any format: inputs, outputs, weights, a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mllm_export.export.stored import stored_shapes
from mllm_export.export.vision_parts import embed, vision_parts
from mllm_export.spec import IMAGE_EMBEDS
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from mllm_export.spec import EncoderSpec, ImageSpec, VisionSpec


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A function of one tensor or several; see `apply`."""

    name: str
    inputs: Mapping[str, Shape]
    """Name to shape, in the order that `apply` is given them."""
    outputs: Mapping[str, Shape]
    """Name to shape, in the order that `apply` gives them; the first is what all else serves."""
    parts: tuple[tuple[str, Mapping[str, Shape]], ...]
    """Prefix in the file, and published names with shapes."""
    apply: Callable[[Mapping[str, Tensor], Sequence[Tensor]], tuple[Tensor, ...]]
    """Stored weights by name in the file, and the inputs, to the outputs."""
    images: Mapping[str, ImageSpec] = field(default_factory=dict)
    """What each input's pixels are made of; empty where the inputs are ids (i64)."""
    vocab: int = 0
    """Ids in the input are below this."""
    resizes_positions: bool = False
    """Whether the stored table of positions is of another grid than the image's."""

    @property
    def integer(self) -> bool:
        """Whether the inputs are ids (i64) and not f32."""
        return not self.images

    def stored(self) -> dict[str, Shape]:
        """Name in the file to stored shape, in order."""
        return {
            n: s for prefix, names in self.parts for n, s in stored_shapes(prefix, names).items()
        }


def tower_graph(vision: VisionSpec) -> Graph:
    """Encoders and projector: pixels f32[1, 3, S, S] of each input to image_embeds f32[T, D]."""
    return Graph(
        name="tower",
        inputs=vision.input_shapes,
        images={one.name: one.image for one in vision.image_inputs},
        resizes_positions=any(resizes_positions(encoder) for encoder in vision.encoders),
        outputs={IMAGE_EMBEDS: (vision.projector.tokens_out, vision.projector.out_width)},
        parts=vision_parts(vision),
        apply=lambda weights, given: (embed(vision, weights, given),),
    )


def resizes_positions(encoder: EncoderSpec) -> bool:
    """See `Graph.resizes_positions`."""
    return encoder.position_grid not in (None, 0, encoder.grid)
