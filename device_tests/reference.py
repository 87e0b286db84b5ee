"""What an independent reference offers: the original model in float32, nothing of our export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mllm_export.catalog import Catalog
from mllm_export.errors import CheckError

if TYPE_CHECKING:
    from PIL import Image

    from mllm_export.checkpoint import Checkpoint
    from mllm_export.device_tests.originals import Original, OriginalKey
    from mllm_export.quantize.inputs import ObservedLayer

Floats = npt.NDArray[np.float32]
Reader = Callable[[str], npt.NDArray[Any]]
"""Published tensor name to its values."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forced:
    """A sequence given to the decoder whole, and how many of its last rows are asked for."""

    ids: tuple[int, ...]
    """Token ids; IMAGE_ID for each image."""
    images: tuple[Floats, ...]
    """f32[T, D] for each image; sequences that share the arrays share their prefix's work."""
    rows: int
    """Logits of the last `rows` positions."""


class Reference(Protocol):
    """The original, part by part."""

    title: str
    """What it is made of, for the report."""
    resident: bool
    """True: its weights stay in memory, so that another forward pass reads nothing."""
    parameters: int
    """Of the decoder's layers: what a forward pass costs for each token."""
    bos_id: int
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]

    def pixels(self, image: Image.Image) -> Floats:
        """The original processor. Shapes: f32[1, 3, S, S]."""

    def embed(self, pixels: Floats) -> Floats:
        """Tower and projector. Shapes: f32[B, 3, S, S] -> f32[B, T, D]."""

    def holding(self, weights: Reader) -> Reference:
        """The same original with other weights in tower and projector, by published name."""

    def prompt_ids(self, question: str, images: int = 1) -> list[int]:
        """The whole prompt of one user turn, IMAGE_ID for each image."""

    def text_ids(self, text: str) -> list[int]:
        """Plain text after something else: no BOS."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of answer ids, without special tokens."""

    def logits(self, sequences: Sequence[Forced], weights: Reader | None = None) -> list[Floats]:
        """Shapes: f32[rows, V] for each sequence.

        `weights` replaces the decoder's own weights, by published name.
        """

    def at(self, precision: str) -> Reference:
        """The same original computing in another torch dtype: for the noise floor alone."""

    def decoder_originals(self) -> dict[str, Original]:
        """Every tensor that the decoder's file must hold, by its name there."""

    def decoder_keys(self) -> tuple[OriginalKey, ...]:
        """Metadata that the decoder's file must hold."""

    def tower_originals(self) -> dict[str, Original]:
        """Every tensor that the tower's file must hold, by its name there."""


@runtime_checkable
class Walkable(Protocol):
    """A reference whose decoder can be calibrated a layer at a time."""

    def walk(self, sequences: Sequence[Forced], diagonal_only: bool) -> Iterator[ObservedLayer]:
        """The decoder over calibration sequences, a layer at a time, the head last.

        Each layer is given once the sequences ran through it; weights that are put in its place
        before the next one is asked for are what the layers behind it see.
        """


ReferenceFactory = Callable[["Checkpoint"], Reference]

REFERENCES: Catalog[ReferenceFactory] = Catalog(
    "mllm_export.device_tests.references", "REFERENCE", "reference", CheckError
)
"""By family name: the file name is the family."""
