"""What a file of the export must hold, derived from the checkpoint without the exporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.reference import Floats

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Original:
    """A published tensor as the export must store it."""

    source: str
    """Name in the checkpoint; `tower:` stands before those of the tower's own folder."""
    shape: tuple[int, ...]
    """As stored."""
    read: Callable[[], Array]
    """The published values, a view of the file."""
    rows: npt.NDArray[np.int64] | None = None
    """Published row at each stored row, where their order differs."""
    transposed: bool = False
    """A linear map's [out, in] stored as [in, out]."""
    made: Callable[[Floats], Floats] | None = None
    """What is stored in place of the published values, where that is something else."""
    unmade: Callable[[Floats], Floats] | None = None
    """The way back."""
    instead: Original | None = None
    """What may stand in its place in a format that keeps no more than the model runs with."""

    def values(self, start: int, stop: int) -> Floats:
        """Stored rows start..stop, in float32. Shapes: f32[stop - start, ...]."""
        view = self.read()
        if self.transposed:
            view = view.reshape(view.shape[:2]).T
        taken = view[start:stop] if self.rows is None else view[self.rows[start:stop]]
        values = np.array(taken, np.float32).reshape(stop - start, *self.shape[1:])
        return values if self.made is None else self.made(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalKey:
    """A metadata key of the decoder's file, from the published config."""

    key: str
    value: int | float | str | bool
    default: int | float | str | bool | None = None
    """What the engine takes where the key is absent; None: it must be there."""


def standing(
    originals: Mapping[str, Original], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Original]:
    """Each original in the form that a file has, by the shapes of the file's tensors."""
    return {
        name: one.instead if one.instead and shapes.get(name) == one.instead.shape else one
        for name, one in originals.items()
    }


def interleaved_rows(heads: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Published row at each stored row of a query or key weight.

    transformers rotates value j of a head with value j + head_dim/2; llama.cpp's llama rotates
    neighbours, so it stores the two halves of each head interleaved.
    Source: llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute.
    """
    half = head_dim // 2
    within = np.empty(head_dim, np.int64)
    within[0::2] = np.arange(half)
    within[1::2] = np.arange(half) + half
    return (np.arange(heads)[:, None] * head_dim + within).ravel()
