"""hqq: large errors are taken for outliers and left out while the scales are fitted to the rest.

Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
mobiusml.github.io/hqq_blog, equations 2 to 5: error e and scales in turn minimise
|e|_p^p + beta/2 |e - (W - Q(W))|^2 with a growing beta. The layout's own fit stands for the
authors' step in the zero point, for its blocks may have none. No calibration is used.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mllm_export.quantize.ggml import Floats
from mllm_export.quantize.method import Fitted, Layer, Storage

_NORM = 0.7
_BETA = 10.0
_GROWTH = 1.01
_ROUNDS = 20
"""The authors' settings."""


class Hqq:
    """Each quantized weight by itself."""

    needs_inputs = False
    chooses_codes = True

    def choose(self, layer: Layer) -> Layer:
        """Codes on the grid whose errors have the least p-norm; a layout without one is left."""
        fitted, weights = dict(layer.fitted), dict(layer.weights)
        for name, storage in layer.storage.items():
            found = _search(weights[name], storage)
            if found is not None:
                fitted[name] = found
                weights[name] = found.grid.values(found.codes)
        return replace(layer, fitted=fitted, weights=weights)


def _search(weights: Floats, storage: Storage) -> Fitted | None:
    grid = storage.fit(weights, None)
    best, least, beta = None, np.inf, _BETA
    # The authors' beta is meant for weights of their size; in units of the spread it fits all.
    unit = float(np.abs(weights).mean()) or 1.0
    for _ in range(_ROUNDS):
        if grid is None:
            return None
        codes = grid.codes(weights)
        error = (weights - grid.values(codes)) / unit
        cost = float((np.abs(error) ** _NORM).sum(dtype=np.float64))
        if cost >= least:
            break
        best, least = Fitted(grid=grid, codes=codes), cost
        grid = storage.fit(weights - unit * _shrunk(error, beta), None)
        beta *= _GROWTH
    return best


def _shrunk(error: Floats, beta: float) -> Floats:
    """The generalised soft threshold: equation 4."""
    size = np.abs(error)
    with np.errstate(divide="ignore"):
        kept = np.maximum(size - size ** (_NORM - 1) / beta, 0)
    return np.asarray(np.sign(error) * kept, np.float32)


METHOD = Hqq()
