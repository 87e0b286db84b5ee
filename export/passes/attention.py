"""Attention written out, as one operator.

    Reshape and Transpose of q, k, v -> MatMul(q * s, k^T) -> Softmax -> MatMul(v)
        -> Transpose -> Reshape                   ->    MultiHeadAttention(q, k, v, scale = s)

Scores are computed block by block and never stand in memory as a whole.
Source: onnxruntime, ContribOperators.md, com.microsoft.MultiHeadAttention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllm_export.export.graph_index import GraphIndex

if TYPE_CHECKING:
    from onnx import NodeProto

_HEADS, _HEADS_TURNED, _BACK = [0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]


class Attention:
    """Every attention whose heads are split and joined by reshapes."""

    after: tuple[str, ...] = ()

    def rewrite(self, graph: GraphIndex) -> int:
        """Exchange the last Reshape; the rest falls away."""
        return sum(_fuse(graph, node) for node in graph.nodes("Softmax"))


def _fuse(graph: GraphIndex, softmax: NodeProto) -> bool:
    # A mask would be an Add in between: then the attention is left as it is.
    product = graph.maker(softmax.input[0], "MatMul")
    mixed = graph.only_reader(softmax.output[0], "MatMul")
    if product is None or mixed is None or mixed.input[0] != softmax.output[0]:
        return False
    if [one.i for one in softmax.attribute if one.name == "axis"] not in ([], [-1], [3]):
        return False
    scaled = graph.maker(product.input[0], "Mul")
    factors = None if scaled is None else graph.times(scaled)
    turned, scale = factors or (product.input[0], 1.0)
    parts = (
        _split(graph, turned, _HEADS),
        _split(graph, product.input[1], _HEADS_TURNED),
        _split(graph, mixed.input[1], _HEADS),
    )
    joined = _joined(graph, mixed)
    if any(part is None for part in parts) or joined is None:
        return False
    (query, heads), (key, key_heads), (value, value_heads) = (p for p in parts if p is not None)
    if not heads == key_heads == value_heads:
        return False
    inputs = [query, key, value]
    graph.exchange(joined, "MultiHeadAttention", inputs, num_heads=heads, scale=scale)
    return True


def _split(graph: GraphIndex, value: str, order: list[int]) -> tuple[str, int] | None:
    """Rows [1, T, D] behind heads [1, H, T, d] or [1, H, d, T], and how many heads there are."""
    turn = graph.maker(value, "Transpose")
    reshape = None if turn is None else graph.maker(turn.input[0], "Reshape")
    if turn is None or reshape is None or list(turn.attribute[0].ints) != order:
        return None
    shape = graph.constant(reshape.input[1])
    if shape is None or len(shape) != 4 or shape[0] != 1:
        return None
    return reshape.input[0], int(shape[2])


def _joined(graph: GraphIndex, mixed: NodeProto) -> NodeProto | None:
    """The Reshape that puts heads side by side again: [1, H, T, d] to [1, T, D]."""
    turn = graph.only_reader(mixed.output[0], "Transpose")
    if turn is None or list(turn.attribute[0].ints) != _BACK:
        return None
    reshape = graph.only_reader(turn.output[0], "Reshape")
    shape = None if reshape is None else graph.constant(reshape.input[1])
    return reshape if shape is not None and len(shape) == 3 else None


PASS = Attention()
