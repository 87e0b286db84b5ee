"""Palettes: each weight is the number of one of a few values, which 16 output channels share."""

from __future__ import annotations

from math import prod
from typing import Any

from mllm_export.export.coreml_tools import coremltools
from mllm_export.weights import Shape

_GROUP = 16
"""Output channels that share a palette. Source: coremltools' guide to palettization, for iOS 18."""


class Palette:
    """Weights whose output channels are whole groups, and large enough to pay for the palettes."""

    opset = "CoreML8"

    def __init__(self, bits: int) -> None:
        """`bits` of a weight's number."""
        self.bits = bits

    def refuses(self, shape: Shape) -> str:
        """Coremltools leaves a weight as it is when the groups do not divide it."""
        if shape[0] % _GROUP:
            return f"{shape[0]} output channels are not whole groups of {_GROUP}"
        if self.size_bytes(shape) >= 2 * prod(shape):
            each = _GROUP * prod(shape[1:])
            return f"a palette of {1 << self.bits} values for {each} weights saves nothing"
        return ""

    def size_bytes(self, shape: Shape) -> int:
        """The numbers, and a float16 palette per group."""
        palettes = 2 * (shape[0] // _GROUP) << self.bits
        return -(-prod(shape) * self.bits // 8) + palettes

    def config(self) -> Any:
        """Values by k-means, which in one dimension has an exact answer."""
        return coremltools().optimize.coreml.OpPalettizerConfig(
            mode="kmeans",
            nbits=self.bits,
            granularity="per_grouped_channel",
            group_size=_GROUP,
            weight_threshold=0,
        )
