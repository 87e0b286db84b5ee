"""The even steps that a layout offers for each value, once its scales are fixed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mllm_export.quantize.ggml import Floats, Packed

Places = slice | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Code c of a value stands for `offsets + c * steps`.

    Shapes: f32[rows, cols] twice.
    """

    steps: Floats
    offsets: Floats
    levels: int
    """Codes are 0 to levels - 1."""
    packed: Packed
    """Rows as the layout stores them, with these scales and any codes."""

    def codes(self, values: Floats, columns: Places = slice(None)) -> Packed:
        """The nearest code of each value in some columns. Shapes: f32[rows, n] -> u8[rows, n]."""
        steps, offsets = self.steps[:, columns], self.offsets[:, columns]
        with np.errstate(divide="ignore", invalid="ignore"):
            places = np.where(steps == 0, 0, np.rint((values - offsets) / steps))
        return np.clip(places, 0, self.levels - 1).astype(np.uint8)

    def values(self, codes: Packed, columns: Places = slice(None)) -> Floats:
        """What codes stand for. Shapes: u8[rows, n] -> f32[rows, n]."""
        made = self.offsets[:, columns] + codes.astype(np.float32) * self.steps[:, columns]
        return np.asarray(made, np.float32)
