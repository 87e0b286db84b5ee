"""Stored tensors into which a method moved a scale per channel, read as if it had not.

    norm / s        norm(x) / s
    (s * W)   read as   W

The scales stand beside the decoder's file: see `export.decoder_calibrated`. A scale that went into
one tensor and not out of the other leaves a tensor that is not its source's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import Stored, read_gguf
from mllm_export.errors import CheckError
from mllm_export.export.decoder_calibrated import FOLDS
from mllm_export.export.decoder_values import COLUMNS, ROWS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldedStored:
    """A tensor whose columns were multiplied and whose rows were divided before it was stored."""

    inner: Stored
    columns: Floats | None
    """f32[cols]."""
    rows: Floats | None
    """f32[rows]."""

    @property
    def scheme(self) -> str:
        """How it is stored."""
        return self.inner.scheme

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major, as stored."""
        return self.inner.shape

    def values(self, start: int, stop: int) -> Floats:
        """Rows start..stop, dequantized, the scales taken out."""
        made = self.inner.values(start, stop)
        if self.columns is not None:
            made = made / self.columns
        return made if self.rows is None else made * self._rows(start, stop, made)

    def fold(self, source: Floats, start: int, stop: int) -> Floats:
        """Rows of the source with the scales put in, as a method does it before they are stored."""
        if self.columns is not None:
            source = source * self.columns
        return source if self.rows is None else source / self._rows(start, stop, source)

    def _rows(self, start: int, stop: int, like: Floats) -> Floats:
        assert self.rows is not None
        return self.rows[start:stop].reshape(-1, *([1] * (like.ndim - 1)))


def read_decoder(path: Path) -> tuple[dict[str, Stored], dict[str, object]]:
    """Every tensor of the decoder's file, unfolded, and its metadata without the arrays.

    Raises: CheckError for scales of a tensor that is not there, or that do not fit it.
    """
    tensors, keys = read_gguf(path)
    return unfold(tensors, path.with_name(FOLDS)), keys


def unfold(tensors: dict[str, Stored], path: Path) -> dict[str, Stored]:
    """The tensors with the scales that stand in `path`, if it is there.

    Raises: see `read_decoder`.
    """
    from safetensors.numpy import load_file

    if not path.is_file():
        return tensors
    scales = load_file(path)
    found = dict(tensors)
    for name in dict.fromkeys(key.rpartition(".")[0] for key in scales):
        if name not in tensors:
            raise CheckError(f"{path}: scales of '{name}', which the decoder's file does not hold")
        found[name] = _folded(tensors[name], name, scales, path)
    return found


def _folded(inner: Stored, name: str, scales: dict[str, Floats], path: Path) -> FoldedStored:
    columns, rows = scales.get(name + COLUMNS), scales.get(name + ROWS)
    for one, size in ((columns, inner.shape[-1]), (rows, inner.shape[0])):
        if one is not None and (one.shape != (size,) or not (np.isfinite(one) & (one > 0)).all()):
            raise CheckError(
                f"{path}: scales of '{name}' are {list(one.shape)}, needed: {size} positive numbers"
            )
    return FoldedStored(inner=inner, columns=columns, rows=rows)
