"""INT4 in blocks of 32 along the input channels, one step per block, around zero."""

from __future__ import annotations

from math import prod
from typing import Any

from mllm_export.export.coreml_tools import coremltools
from mllm_export.weights import Shape

_BLOCK = 32


class Int4Blocks:
    """Weights whose input channels are whole blocks."""

    opset = "CoreML8"

    def refuses(self, shape: Shape) -> str:
        """Coremltools leaves a weight as it is when the blocks do not divide it."""
        if shape[1] % _BLOCK:
            return f"{shape[1]} input channels are not whole blocks of {_BLOCK}"
        return ""

    def size_bytes(self, shape: Shape) -> int:
        """Half a byte each, and a float16 step per block."""
        return -(-prod(shape) // 2) + 2 * prod(shape) // _BLOCK

    def config(self) -> Any:
        """Linear, symmetric, per block."""
        return coremltools().optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int4",
            granularity="per_block",
            block_size=_BLOCK,
            weight_threshold=0,
        )


SCHEME = Int4Blocks()
