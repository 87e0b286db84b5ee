"""What calibration says of a layer's weights: second moments of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mllm_export.quantize.ggml import Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """The inputs X f32[positions, cols] of one weight, as far as methods need them."""

    gram: Floats
    """X^T X over all positions, f32[cols, cols]; with `diagonal_only` its diagonal f32[cols]."""
    count: int
    """Positions."""

    @property
    def sums(self) -> Floats:
        """Squares summed over positions, f32[cols]."""
        return self.gram if self.gram.ndim == 1 else np.asarray(np.diagonal(self.gram))

    @property
    def importance(self) -> Floats:
        """Mean squares, f32[cols]."""
        return np.asarray(self.sums / np.float32(max(self.count, 1)), np.float32)

    def scaled(self, divisor: Floats) -> Inputs:
        """Of inputs whose columns were divided. Shapes: f32[cols]."""
        gram = self.gram / np.outer(divisor, divisor)
        return Inputs(gram=np.asarray(gram, np.float32), count=self.count)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObservedLayer:
    """One layer of the original after calibration ran through it."""

    inputs: Mapping[str, Inputs]
    """By published name of the weight."""
    replace: Callable[[Mapping[str, Floats]], None]
    """Weights by published name that the layers behind it shall see this one have."""
