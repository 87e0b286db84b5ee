"""The engine protocols, and the catalogs of what stands in vision/ and decoder/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mllm_export.catalog import Catalog
from mllm_export.errors import BundleError, EngineError
from mllm_export.kv_cache import KvType
from mllm_export.spec import ImageSpec, ModelSpec

Floats = npt.NDArray[np.float32]
Segment = list[int] | Floats
"""A run of token ids, or image embeddings f32[T, D]."""


class Tower(Protocol):
    """An opened vision tower with its projector."""

    def embed(self, pixels: Floats) -> Floats:
        """Pixels f32[N, 3, S, S] to embeddings f32[N * T, D], tile after tile."""

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""


class Decoder(Protocol):
    """An opened language model with one KV cache."""

    @property
    def context_tokens(self) -> int:
        """Positions that prompt and answer may take together."""

    @property
    def positions(self) -> int:
        """Positions taken now."""

    @property
    def reused_positions(self) -> int:
        """How many positions the last `evaluate` found in the KV cache."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of one piece of text, without BOS; special tokens are recognised in it."""

    def piece(self, token_id: int) -> bytes:
        """The bytes a token stands for; nothing for control tokens."""

    def check(self, segments: Sequence[Segment]) -> None:
        """Raises: EngineError for a prompt that `evaluate` would refuse."""

    def evaluate(self, segments: Sequence[Segment], all_logits: bool) -> Floats:
        """Start a new sequence: f32[positions, V] with `all_logits`, else f32[1, V] of the last."""

    def extend(self, token_id: int) -> Floats:
        """Add one token to the sequence: its f32[V]."""

    def forget(self) -> None:
        """Drop the sequence, so that nothing of it is used again."""

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""


@runtime_checkable
class KeepsBeginning(Protocol):
    """A decoder whose state can be taken out, and put back in place of computing it."""

    @property
    def arithmetic(self) -> str:
        """What the bits of a state depend on beside the file: the engine and its CPU features."""

    def state_behind(self, ids: list[int]) -> bytes:
        """The state that a first segment of these ids leaves; empty where there is no such thing.

        Raises: EngineError for ids that cannot be evaluated.
        """

    def begin_with(self, ids: list[int], state: bytes) -> None:
        """Put that state back whenever a prompt begins with these ids and nothing is kept."""


GraphRun = Callable[[npt.NDArray[Any]], dict[str, Floats]]
"""A graph's outputs by name for its one input: pixels f32[1, 3, S, S], or ids i64[1, T]."""


class VisionEngine(Protocol):
    """A file in runtimes/vision: opens the bundle's tower."""

    def open(self, path: Path, spec: ModelSpec, threads: int) -> Tower:
        """Raises: EngineError when the file does not fit the spec."""

    def open_graph(self, path: Path, image: ImageSpec | None, threads: int) -> GraphRun:
        """Any graph of one input; `image` says what its pixels are, None: ids.

        Raises: EngineError when the engine refuses the file; so does the graph, for an input of
        another shape.
        """


class DecoderEngine(Protocol):
    """A file in runtimes/decoder: opens the bundle's language model."""

    def open(
        self,
        path: Path,
        spec: ModelSpec,
        context_tokens: int,
        threads: int,
        kv_type: KvType = "f16",
    ) -> Decoder:
        """Raises: EngineError when the file does not fit the spec, or heads the KV type."""


VISION_ENGINES: Catalog[VisionEngine] = Catalog(
    "mllm_export.runtimes.vision", "ENGINE", "vision engine", BundleError
)
DECODER_ENGINES: Catalog[DecoderEngine] = Catalog(
    "mllm_export.runtimes.decoder", "ENGINE", "decoder engine", BundleError
)


def require_shape(path: Path, name: str, found: tuple[int, ...], needed: tuple[int, ...]) -> None:
    """Raises: EngineError for an input of another shape than the graph's."""
    if found != needed:
        raise EngineError(f"{path}: {name} is {list(found)}, needed: {list(needed)}")
