"""gptq: columns are rounded one by one, and those not yet rounded make up for the error.

Source: Frantar et al. 2022, arXiv 2210.17323, algorithm 1; the order by falling second moments and
the scales fixed beforehand are the authors' `act-order` and `static-groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mllm_export.quantize.ggml import Floats, Packed
from mllm_export.quantize.grid import Grid
from mllm_export.quantize.inputs import Inputs
from mllm_export.quantize.method import Fitted, Layer, output_error

_DAMPING = 0.01
"""Of the mean second moment, added to each: the paper's value."""

_BLOCK_COLUMNS = 128
"""Errors reach the columns behind a block at once, as one matrix product."""


class Gptq:
    """Each quantized weight by itself; the inputs are those of the layer as calibrated."""

    needs_inputs = True
    chooses_codes = True

    def choose(self, layer: Layer) -> Layer:
        """Values on the layout's own grid; a layout without one keeps its rounding."""
        fitted = dict(layer.fitted)
        weights = dict(layer.weights)
        for name, storage in layer.storage.items():
            inputs = layer.inputs.get(name)
            if inputs is None:
                continue
            grid = storage.fit(weights[name], inputs.importance)
            if grid is None:
                continue
            codes = choose_codes(weights[name], grid, inputs)
            made = grid.values(codes)
            plain = storage.round(weights[name], inputs.importance)
            if output_error(made - weights[name], inputs) < output_error(
                plain - weights[name], inputs
            ):
                fitted[name], weights[name] = Fitted(grid=grid, codes=codes), made
        return replace(layer, fitted=fitted, weights=weights)


def choose_codes(weights: Floats, grid: Grid, inputs: Inputs) -> Packed:
    """Codes of the grid that keep the outputs close.

    Shapes: f32[rows, cols] -> u8[rows, cols].
    """
    order = np.argsort(-inputs.sums, kind="stable")
    spread = _inverse_factor(np.asarray(inputs.gram)[np.ix_(order, order)])
    left = np.array(weights[:, order], np.float32)
    codes = np.empty(weights.shape, np.uint8)
    for block in _blocks(len(order)):
        errors = np.empty((len(left), block.stop - block.start), np.float32)
        for at in range(block.start, block.stop):
            column = order[at : at + 1]
            codes[:, column] = grid.codes(left[:, at : at + 1], column)
            off = left[:, at] - grid.values(codes[:, column], column)[:, 0]
            errors[:, at - block.start] = off / spread[at, at]
            inside = slice(at + 1, block.stop)
            left[:, inside] -= np.outer(errors[:, at - block.start], spread[at, inside])
        behind = slice(block.stop, None)
        left[:, behind] -= errors @ spread[block, behind]
    return codes


def _inverse_factor(gram: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Upper Cholesky factor of the damped inverse. Shapes: f32[cols, cols] -> the same."""
    from threadpoolctl import threadpool_limits

    damped = gram.astype(np.float64)
    mean = float(np.diagonal(damped).mean())
    damped[np.diag_indices_from(damped)] += _DAMPING * mean if mean else 1.0
    # LAPACK cuts both into blocks by the number of threads, and other blocks have other last bits;
    # products were measured to give the same ones with any number.
    with threadpool_limits(1, user_api="blas"):
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    return np.ascontiguousarray(factor, np.float32)


def _blocks(columns: int) -> Iterator[slice]:
    for start in range(0, columns, _BLOCK_COLUMNS):
        yield slice(start, min(columns, start + _BLOCK_COLUMNS))


METHOD = Gptq()
