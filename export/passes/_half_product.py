"""The end that both forms of GELU share: x * (1/2 * (1 + inner))."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mllm_export.export.graph_index import GraphIndex

if TYPE_CHECKING:
    from onnx import NodeProto


def half_product(graph: GraphIndex, inner: NodeProto, value: str) -> NodeProto | None:
    """The last Mul, whose output is `value` times the half of one more than `inner` gives."""
    add = graph.only_reader(inner.output[0], "Add")
    if add is None or not any(same(graph.scalar(name), 1.0) for name in add.input):
        return None
    half = graph.only_reader(add.output[0], "Mul")
    factors = None if half is None else graph.times(half)
    if half is None or factors is None or not same(factors[1], 0.5):
        return None
    last = graph.only_reader(half.output[0], "Mul")
    return last if last is not None and value in last.input else None


def same(number: float | None, wanted: float) -> bool:
    """Whether a constant in float32 stands for that number."""
    return number is not None and math.isclose(number, wanted, rel_tol=1e-6)
