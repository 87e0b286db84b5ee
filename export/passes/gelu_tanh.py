"""GELU by tanh, as one operator.

    x * (1/2 * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))))    ->    FastGelu(x)

Source: onnxruntime, ContribOperators.md, com.microsoft.FastGelu.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mllm_export.export.graph_index import GraphIndex
from mllm_export.export.passes._half_product import half_product, same

if TYPE_CHECKING:
    from onnx import NodeProto

_CUBIC = 0.044715
"""Source: Hendrycks and Gimpel, Gaussian Error Linear Units (arXiv:1606.08415)."""


class GeluTanh:
    """SigLIP's activation."""

    after: tuple[str, ...] = ()

    def rewrite(self, graph: GraphIndex) -> int:
        """Exchange the last Mul."""
        return sum(_fuse(graph, node) for node in graph.nodes("Tanh"))


def _fuse(graph: GraphIndex, tanh: NodeProto) -> bool:
    scaled = graph.maker(tanh.input[0], "Mul")
    outer = None if scaled is None else graph.times(scaled)
    if outer is None or not same(outer[1], math.sqrt(2 / math.pi)):
        return False
    add = graph.maker(outer[0], "Add")
    value = None if add is None else _cubed(graph, add)
    last = None if value is None else half_product(graph, tanh, value)
    if value is None or last is None:
        return False
    graph.exchange(last, "FastGelu", [value])
    return True


def _cubed(graph: GraphIndex, add: NodeProto) -> str | None:
    """The value that is summed with its own cube."""
    for value, other in ((add.input[0], add.input[1]), (add.input[1], add.input[0])):
        product = graph.maker(other, "Mul")
        factors = None if product is None else graph.times(product)
        power = None if factors is None else graph.maker(factors[0], "Pow")
        if factors is None or power is None or power.input[0] != value:
            continue
        if same(factors[1], _CUBIC) and same(graph.scalar(power.input[1]), 3.0):
            return str(value)
    return None


PASS = GeluTanh()
