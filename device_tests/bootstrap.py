"""Confidence interval of a paired difference, by resampling the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DRAWS = 10_000
SEED = 0


def paired_interval(differences: npt.NDArray[Any], confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of the mean difference; the same input gives the same bounds.

    Shapes: [samples], export minus original of each sample.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, percentile interval.
    """
    values, counts = np.unique(np.asarray(differences, np.float64), return_counts=True)
    rng = np.random.default_rng(SEED)
    # A resample with replacement of few distinct values is a multinomial draw of their counts.
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=DRAWS)
    means = drawn @ values / counts.sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
