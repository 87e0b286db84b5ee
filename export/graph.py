"""What a graph computes, free of any format: one input, one output, weights, a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.stored import PROJECTOR, TOWER, stored_shapes
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from mllm_export.spec import EncoderSpec, ProjectorSpec


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A function of one tensor; see `apply`."""

    name: str
    input: str
    input_shape: Shape
    integer: bool
    """Whether the input is ids (i64) and not f32."""
    output: str
    output_shape: Shape
    parts: tuple[tuple[str, Mapping[str, Shape]], ...]
    """Prefix in the file, and published names with shapes."""
    apply: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    """Stored weights by name in the file, and the input, to the output."""

    def stored(self) -> dict[str, Shape]:
        """Name in the file to stored shape, in order."""
        return {
            n: s for prefix, names in self.parts for n, s in stored_shapes(prefix, names).items()
        }


def tower_graph(encoder: EncoderSpec, projector: ProjectorSpec) -> Graph:
    """Tower and projector: pixel_values f32[1, 3, S, S] to image_embeds f32[T, D]."""

    def apply(weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        features = ENCODERS[encoder.kind].apply(encoder, below(TOWER, weights), pixels)
        rows = PROJECTORS[projector.kind].apply(projector, below(PROJECTOR, weights), features)
        return rows.reshape(projector.tokens_out, projector.out_width)

    size_px = encoder.image.size_px
    return Graph(
        name="tower",
        input="pixel_values",
        input_shape=(1, 3, size_px, size_px),
        integer=False,
        output="image_embeds",
        output_shape=(projector.tokens_out, projector.out_width),
        parts=(
            (TOWER, ENCODERS[encoder.kind].parameters(encoder)),
            (PROJECTOR, PROJECTORS[projector.kind].parameters(projector)),
        ),
        apply=apply,
    )


def below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one part, by published name."""
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
