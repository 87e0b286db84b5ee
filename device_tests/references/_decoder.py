"""A decoder through transformers' own layers, in float32, a layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mllm_export.device_tests.originals import Original, OriginalKey
from mllm_export.device_tests.reference import Floats, Forced, Reader
from mllm_export.device_tests.references._fill import (
    LayerStack,
    fill,
    float32_tensor,
    read_float32,
)
from mllm_export.device_tests.references._observe import Observer
from mllm_export.device_tests.references._packing import Piece, Row, pack
from mllm_export.quantize.inputs import ObservedLayer
from mllm_export.spec import IMAGE_ID

IMAGE_SHARE = 0.1
"""What a position of a picture counts in calibration, where a token of text counts 1.

A picture has some hundred positions and a question a dozen, but answers are read off the text
alone. Measured on the reference at q4_k_m: mean KL 0.0197 with 1, 0.0162 with 0.1."""

_Layout = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]

Renamed = Callable[[Reader], Reader]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Architecture:
    """What transformers makes the decoder of; names are its own."""

    title: str
    """Its class in transformers."""
    layers: int
    layer: Callable[[int], nn.Module]
    rotary: nn.Module
    norm: Callable[[], nn.Module]
    norm_prefix: str
    head: str
    """Weight of the output head."""
    head_bias: str = ""
    """Bias of the output head; empty where it has none."""
    renamed: Renamed = lambda read: read
    """From a reader of published names to one of transformers' names."""
    parameter: Callable[[str], str] = lambda name: name
    """Name below the family's prefix of what transformers names so; several may share one."""
    taken: Renamed = lambda read: read
    """From a reader of names below the family's prefix to one of transformers' names."""
    originals: Callable[[Reader], dict[str, Original]]
    """Every tensor of the decoder's file, by name in GGUF; the reader takes published names."""
    keys: Callable[[Any], tuple[OriginalKey, ...]]
    """Metadata of the decoder's file; takes the original's tokenizer."""


class DecoderRows:
    """Logits of packed rows; weights are read through `read` and never held all at once."""

    def __init__(
        self, architecture: Architecture, read: Reader, dtype: torch.dtype = torch.float32
    ) -> None:
        """`read` takes published names. `dtype` other than float32 measures the noise floor."""
        self._dtype = dtype
        self.architecture = architecture
        self._read = architecture.renamed(read)
        self._stack = self._stack_of(self._read)
        self.resident = self._stack.resident
        self.parameters = self._stack.parameters

    def _stack_of(self, read: Reader) -> LayerStack:
        made = self.architecture
        return LayerStack(made.layer, read, "model.layers.{}.", made.layers, self._dtype)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[Forced], weights: Reader | None) -> list[Floats]:
        """Shapes: f32[rows, V] for each sequence; see `Reference.logits`."""
        read = self.architecture.renamed(weights) if weights else self._read
        stack = self._stack if weights is None else self._stack_of(read)
        rows = pack(sequences)
        table = read("model.embed_tokens.weight")
        hidden = [_embedded(row, table).to(self._dtype) for row in rows]
        layouts = [row.layout() for row in rows]
        for index in range(stack.count):
            hidden = self._through(stack.layer(index), hidden, layouts)
        return self._head(read, rows, hidden, len(sequences))

    def walk(self, sequences: Sequence[Forced], diagonal_only: bool) -> Iterator[ObservedLayer]:
        """One layer after another, then the head; see `Walkable.walk`."""
        stack = self._stack_of(self._read)
        rows = pack(sequences)
        table = self._read("model.embed_tokens.weight")
        hidden = [_embedded(row, table).to(self._dtype) for row in rows]
        layouts = [row.layout() for row in rows]
        shares = [torch.from_numpy(row.shares(IMAGE_SHARE)) for row in rows]
        for index in range(stack.count):
            layer = stack.fresh_layer(index)
            observer = Observer(layer, stack.prefix(index), diagonal_only)
            with observer, torch.inference_mode():
                after = self._through(layer, hidden, layouts, observer, shares)
            yield self._observed(observer)
            with torch.inference_mode():
                hidden = self._through(layer, hidden, layouts) if observer.replaced else after
        yield self._walked_head(hidden, shares, diagonal_only)

    def _observed(self, observer: Observer) -> ObservedLayer:
        made = self.architecture

        def replace(weights: Mapping[str, Floats]) -> None:
            read = made.taken(lambda name: weights[name])
            given = [name for name in observer.names() if made.parameter(name) in weights]
            observer.replace({name: np.array(read(name)) for name in given})

        inputs = {made.parameter(name): one for name, one in observer.inputs().items()}
        return ObservedLayer(inputs=inputs, replace=replace)

    def _walked_head(
        self, hidden: list[torch.Tensor], shares: list[torch.Tensor], diagonal_only: bool
    ) -> ObservedLayer:
        made = self.architecture
        norm = fill(made.norm, self._read, made.norm_prefix, self._dtype)
        observer = Observer(norm, "", diagonal_only)
        with torch.inference_mode():
            for states, observer.shares in zip(hidden, shares, strict=True):
                observer.see(made.head, norm(states))
        # Nothing stands behind the head.
        inputs = {made.parameter(name): one for name, one in observer.inputs().items()}
        return ObservedLayer(inputs=inputs, replace=lambda _weights: None)

    def _through(
        self,
        layer: nn.Module,
        hidden: list[torch.Tensor],
        layouts: list[_Layout],
        observer: Observer | None = None,
        shares: Sequence[torch.Tensor] = (),
    ) -> list[torch.Tensor]:
        found = []
        for at, (states, (positions, sees)) in enumerate(zip(hidden, layouts, strict=True)):
            if observer is not None:
                observer.shares = shares[at]
            found.append(self._run(layer, states, positions, sees))
        return found

    def _run(
        self, layer: nn.Module, hidden: torch.Tensor, positions: np.ndarray, sees: np.ndarray
    ) -> torch.Tensor:
        placed = torch.from_numpy(positions)[None]
        out = layer(
            hidden,
            attention_mask=torch.from_numpy(sees)[None, None],
            position_ids=placed,
            position_embeddings=self.architecture.rotary(hidden, placed),
        )
        # Some of transformers' layers give a tuple.
        states: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return states

    def _head(
        self, read: Reader, rows: list[Row], hidden: list[torch.Tensor], count: int
    ) -> list[Floats]:
        made = self.architecture
        norm = fill(made.norm, read, made.norm_prefix, self._dtype)
        head = read_float32(read, made.head).to(self._dtype)
        bias = read_float32(read, made.head_bias).to(self._dtype) if made.head_bias else None
        found: list[Floats | None] = [None] * count
        for row, states in zip(rows, hidden, strict=True):
            for index, positions in row.wanted():
                logits = norm(states[0, positions]) @ head.T
                logits = logits if bias is None else logits + bias
                found[index] = logits.float().numpy()
        return [one for one in found if one is not None]


def _embedded(row: Row, table: npt.NDArray[Any]) -> torch.Tensor:
    return torch.cat([_piece(piece, table) for piece in row.pieces])[None]


def _piece(piece: Piece, table: npt.NDArray[Any]) -> torch.Tensor:
    ids = np.asarray(piece.ids, np.int64)
    at_images = [at for at, one in enumerate(piece.ids) if one == IMAGE_ID]
    parts: list[torch.Tensor] = []
    start = 0
    for at, image in zip(at_images, piece.images, strict=True):
        parts.append(float32_tensor(table[ids[start:at]]))
        parts.append(torch.from_numpy(np.array(image, np.float32)))
        start = at + 1
    parts.append(float32_tensor(table[ids[start:]]))
    return torch.cat(parts)
