"""Handwritten digits for the pictures, split by source image so that evaluation digits are new."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 20260
HELD_OUT_SHARE = 0.2
FULL_INK = 16.0  # Source: scikit-learn's load_digits, ink counts of 4 by 4 blocks, 0..16


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitSet:
    """One split of the digits.

    Shapes: ink f32[N, 8, 8] in 0..1; labels i64[N]; rows i64[N], the row in the source.
    """

    ink: NDArray[np.float32]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]


@cache
def load_digit_set(split: str) -> DigitSet:
    """Read the `train` or the `held_out` digits.

    Source: UCI "Optical Recognition of Handwritten Digits", as scikit-learn ships it.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(source.target))
    cut = int(len(order) * HELD_OUT_SHARE)
    rows = {"held_out": order[:cut], "train": order[cut:]}[split]
    return DigitSet(
        ink=(source.images[rows] / FULL_INK).astype(np.float32),
        labels=source.target[rows].astype(np.int64),
        rows=rows.astype(np.int64),
    )
