"""x * sigmoid(a * x), as one operator.

    Mul(x, a) -> Sigmoid -> Mul(x, .)    ->    QuickGelu(x, alpha = a)

Source: onnxruntime, ContribOperators.md, com.microsoft.QuickGelu.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllm_export.export.graph_index import GraphIndex

if TYPE_CHECKING:
    from onnx import NodeProto


class QuickGelu:
    """CLIP's activation."""

    after: tuple[str, ...] = ()

    def rewrite(self, graph: GraphIndex) -> int:
        """Exchange the last Mul."""
        return sum(_fuse(graph, node) for node in graph.nodes("Sigmoid"))


def _fuse(graph: GraphIndex, sigmoid: NodeProto) -> bool:
    inner = graph.maker(sigmoid.input[0], "Mul")
    last = graph.only_reader(sigmoid.output[0], "Mul")
    factors = None if inner is None else graph.times(inner)
    if factors is None or last is None:
        return False
    value, alpha = factors
    if sorted(last.input) != sorted((value, sigmoid.output[0])):
        return False
    graph.exchange(last, "QuickGelu", [value], alpha=alpha)
    return True


PASS = QuickGelu()
