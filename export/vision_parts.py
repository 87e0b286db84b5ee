"""The parts of a vision graph: under which names their tensors stand, and how they follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mllm_export.export.parts import ENCODERS, FUSIONS, PROJECTORS
from mllm_export.export.stored import PROJECTOR, TOWER
from mllm_export.spec import EncoderSpec, VisionSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor


def encoder_prefix(encoder: EncoderSpec) -> str:
    """What stands before an encoder's published names within the tower; empty for the only one."""
    return f"{encoder.name}." if encoder.name else ""


def tower_parameters(vision: VisionSpec) -> dict[str, Shape]:
    """Every encoder's parameters, each name behind its encoder's prefix."""
    return {
        encoder_prefix(encoder) + name: shape
        for encoder in vision.encoders
        for name, shape in ENCODERS[encoder.kind].parameters(encoder).items()
    }


def vision_parts(vision: VisionSpec) -> tuple[tuple[str, Mapping[str, Shape]], ...]:
    """Tower and projector: what stands before the names in a file, and names with shapes."""
    return (
        (TOWER, tower_parameters(vision)),
        (PROJECTOR, PROJECTORS[vision.projector.kind].parameters(vision.projector)),
    )


def vision_groups(vision: VisionSpec) -> tuple[str, ...]:
    """Beginnings of stored names that are worth a scheme of their own: each encoder, projector."""
    return (*(TOWER + encoder_prefix(one) for one in vision.encoders), PROJECTOR)


def embed(vision: VisionSpec, weights: Mapping[str, Tensor], given: Sequence[Tensor]) -> Tensor:
    """Pixels f32[1, 3, S, S] of every input to image embeddings f32[T, D].

    `weights` by stored name; see `export.stored`.
    """
    features = [
        ENCODERS[encoder.kind].apply(
            encoder,
            below(TOWER + encoder_prefix(encoder), weights),
            given[vision.input_of(encoder)],
        )
        for encoder in vision.encoders
    ]
    joined = FUSIONS[vision.fusion.kind].apply(features) if vision.fusion else features[0]
    projector = vision.projector
    rows = PROJECTORS[projector.kind].apply(projector, below(PROJECTOR, weights), joined)
    return rows.reshape(projector.tokens_out, projector.out_width)


def below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one part, by published name."""
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
