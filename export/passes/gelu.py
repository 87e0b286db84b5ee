"""GELU by the error function, as one operator.

    x * (1/2 * (1 + Erf(x / sqrt(2))))    ->    Gelu(x)

Source: onnxruntime, ContribOperators.md, com.microsoft.Gelu.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mllm_export.export.graph_index import GraphIndex
from mllm_export.export.passes._half_product import half_product, same

if TYPE_CHECKING:
    from onnx import NodeProto


class Gelu:
    """The exact one."""

    after: tuple[str, ...] = ()

    def rewrite(self, graph: GraphIndex) -> int:
        """Exchange the last Mul."""
        return sum(_fuse(graph, node) for node in graph.nodes("Erf"))


def _fuse(graph: GraphIndex, erf: NodeProto) -> bool:
    divide = graph.maker(erf.input[0], "Div")
    if divide is None or not same(graph.scalar(divide.input[1]), math.sqrt(2)):
        return False
    value = divide.input[0]
    last = half_product(graph, erf, value)
    if last is None:
        return False
    graph.exchange(last, "Gelu", [value])
    return True


PASS = Gelu()
