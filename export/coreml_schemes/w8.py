"""INT8 with one step per output channel, around zero."""

from __future__ import annotations

from math import prod
from typing import Any

from mllm_export.export.coreml_tools import coremltools
from mllm_export.weights import Shape


class Int8:
    """Any weight with at least one value per channel and step."""

    opset = "CoreML7"

    def refuses(self, shape: Shape) -> str:
        """A step of two bytes per channel must be worth it."""
        return "" if prod(shape[1:]) > 2 else f"rows of {prod(shape[1:])} values save nothing"

    def size_bytes(self, shape: Shape) -> int:
        """A byte each, and a float16 step per channel."""
        return prod(shape) + 2 * shape[0]

    def config(self) -> Any:
        """Linear, symmetric, per channel."""
        return coremltools().optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0
        )


SCHEME = Int8()
