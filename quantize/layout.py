"""How rows of weights are stored: blocks of a fixed number of values and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mllm_export.catalog import Catalog
from mllm_export.errors import LayoutError
from mllm_export.quantize.codes import Write
from mllm_export.quantize.ggml import Floats, Packed, Stored, dequantize_rows, quantize_rows
from mllm_export.quantize.grid import Grid
from mllm_export.records import record


class Layout(Protocol):
    """A file in quantize/layouts."""

    @property
    def name(self) -> str:
        """The file's name, ggml's word for the type."""

    @property
    def ggml_type(self) -> int:
        """Number of the type in a GGUF file."""

    @property
    def fallback(self) -> str:
        """Layout for rows these blocks do not divide; empty where every row fits."""

    @property
    def has_even_steps(self) -> bool:
        """Whether `fit` gives a grid."""

    def fits(self, cols: int) -> bool:
        """Whether a row of `cols` values is whole blocks."""

    def row_bytes(self, cols: int) -> int:
        """Bytes of one stored row; raises LayoutError for a ragged one."""

    def pack(self, rows: Stored, importance: Floats | None = None) -> Packed:
        """Store rows: float[rows, cols] -> u8[rows, row_bytes].

        `importance` f32[cols] is what an error in each column costs; None: all the same.
        """

    def unpack(self, packed: Packed) -> Floats:
        """Read stored rows: u8[rows, row_bytes] -> f32[rows, cols]."""

    def fit(self, rows: Floats, importance: Floats | None = None) -> Grid | None:
        """Scales for f32[rows, cols] and the steps they give; None where steps are not even."""

    def store(self, grid: Grid, codes: Packed) -> Packed:
        """Rows with the scales of a grid and codes u8[rows, cols] -> u8[rows, row_bytes]."""


LAYOUTS: Catalog[Layout] = Catalog("mllm_export.quantize.layouts", "LAYOUT", "layout", LayoutError)


@record
class GgmlLayout:
    """A ggml type, packed by ggml itself, so equal to llama-quantize bit for bit.

    Source: ggml.h, enum ggml_type; ggml-common.h for the blocks.
    """

    name: str
    ggml_type: int
    block_values: int
    block_bytes: int
    fallback: str = ""
    levels: int = 0
    """Codes of a value, where they stand for even steps and can be chosen one by one."""
    write: Write | None = None
    """Puts codes into packed blocks; see `codes`."""

    @property
    def has_even_steps(self) -> bool:
        """Whether `fit` gives a grid."""
        return self.write is not None

    def fits(self, cols: int) -> bool:
        """Whether a row of `cols` values is whole blocks."""
        return cols % self.block_values == 0

    def row_bytes(self, cols: int) -> int:
        """Bytes of one stored row.

        Raises: LayoutError if the blocks do not divide it.
        """
        if not self.fits(cols):
            raise LayoutError(
                f"a row of {cols} values is not whole blocks of {self.block_values}, "
                f"as {self.name} needs; use {self.fallback or 'another layout'}"
            )
        return cols // self.block_values * self.block_bytes

    def pack(self, rows: Stored, importance: Floats | None = None) -> Packed:
        """Store rows: float[rows, cols] -> u8[rows, row_bytes].

        `importance` f32[cols] is what an error in each column costs; None: all the same.

        Raises: LayoutError for a ragged row, or a value that the blocks cannot hold.
        """
        return quantize_rows(self.ggml_type, rows, self.row_bytes(rows.shape[1]), importance)

    def unpack(self, packed: Packed) -> Floats:
        """Read stored rows: u8[rows, row_bytes] -> f32[rows, cols].

        Raises: LayoutError if a row is not whole blocks.
        """
        row_bytes = packed.shape[1]
        if row_bytes % self.block_bytes:
            raise LayoutError(
                f"a stored row of {row_bytes} bytes is not whole blocks of {self.block_bytes}, "
                f"as {self.name} has; was it stored in another layout?"
            )
        cols = row_bytes // self.block_bytes * self.block_values
        return dequantize_rows(self.ggml_type, packed, cols)

    def fit(self, rows: Floats, importance: Floats | None = None) -> Grid | None:
        """Scales as ggml chooses them, and the steps they give; None where they are not even.

        The steps are read off ggml's own dequantizer: a row of zeros against a row of ones.
        """
        if self.write is None:
            return None
        packed = self.pack(rows, importance)
        codes = np.zeros(rows.shape, np.uint8)
        offsets = self.unpack(self._coded(packed, codes))
        ones = self.unpack(self._coded(packed, codes + np.uint8(1)))
        return Grid(steps=ones - offsets, offsets=offsets, levels=self.levels, packed=packed)

    def store(self, grid: Grid, codes: Packed) -> Packed:
        """Rows with the scales of a grid and codes u8[rows, cols] -> u8[rows, row_bytes]."""
        return self._coded(grid.packed, codes)

    def _coded(self, packed: Packed, codes: Packed) -> Packed:
        if self.write is None:
            raise LayoutError(f"{self.name} has no even steps to choose codes on")
        blocks = packed.reshape(-1, self.block_bytes).copy()
        self.write(blocks, codes.reshape(-1, self.block_values))
        return blocks.reshape(packed.shape)


def stored_bytes(scheme: str, shape: Sequence[int]) -> int:
    """Size of a tensor [..., cols] in a layout, without the file's padding.

    Raises: LayoutError for an unknown layout or a ragged row.
    """
    return math.prod(shape[:-1]) * LAYOUTS[scheme].row_bytes(shape[-1])
