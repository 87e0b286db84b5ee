"""A graph as passes look at it: who makes a value, who reads it, what a constant holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators. Source: its ContribOperators.md."""


class GraphIndex:
    """Nodes by the values they make and read; it stays true while nodes are exchanged."""

    def __init__(self, model: ModelProto) -> None:
        """The model is changed in place."""
        self._model = model
        self._made = {name: node for node in self.graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._outputs = {value.name for value in self.graph.output}

    @property
    def graph(self) -> GraphProto:
        """The model's."""
        return self._model.graph

    def nodes(self, kind: str) -> list[NodeProto]:
        """Those of one operator, in order."""
        return [node for node in self.graph.node if node.op_type == kind and not node.domain]

    def maker(self, value: str, kind: str) -> NodeProto | None:
        """The node that makes a value, if it is of that operator."""
        node = self._made.get(value)
        return node if node is not None and node.op_type == kind and not node.domain else None

    def only_reader(self, value: str, kind: str) -> NodeProto | None:
        """The one node that reads a value, if it is of that operator and nothing else does."""
        found = self._readers[value]
        alone = len(found) == 1 and value not in self._outputs
        return found[0] if alone and found[0].op_type == kind and not found[0].domain else None

    def constant(self, value: str) -> np.ndarray[Any, Any] | None:
        """What a Constant node holds."""
        from onnx import numpy_helper

        node = self.maker(value, "Constant")
        return None if node is None else numpy_helper.to_array(node.attribute[0].t)

    def scalar(self, value: str) -> float | None:
        """What a Constant node of one element holds."""
        held = self.constant(value)
        return float(held.reshape(-1)[0]) if held is not None and held.size == 1 else None

    def times(self, node: NodeProto) -> tuple[str, float] | None:
        """The other factor and the number, where a Mul multiplies by a constant."""
        for at, other in ((0, 1), (1, 0)):
            number = self.scalar(node.input[at])
            if number is not None:
                return node.input[other], number
        return None

    def exchange(
        self, last: NodeProto, kind: str, inputs: Sequence[str], **attributes: Any
    ) -> None:
        """One of ONNX Runtime's operators in the place of `last`, giving the value that it gave.

        What nothing reads any more is left for `sweep`.
        """
        from onnx import helper

        name = last.name
        made = helper.make_node(kind, inputs, last.output, name, domain=CONTRIB, **attributes)
        for value in last.input:
            self._readers[value].remove(last)
        last.CopyFrom(made)
        for value in inputs:
            self._readers[value].append(last)
        if all(one.domain != CONTRIB for one in self._model.opset_import):
            self._model.opset_import.add(domain=CONTRIB, version=1)

    def sweep(self) -> None:
        """Remove nodes whose values nothing reads, and their value_info."""
        kept = _alive(self.graph.node, self._outputs)
        made = {name for node in kept for name in node.output}
        values = [value for value in self.graph.value_info if value.name in made]
        self.graph.ClearField("node")
        self.graph.node.extend(kept)
        self.graph.ClearField("value_info")
        self.graph.value_info.extend(values)


def _alive(nodes: Iterable[NodeProto], outputs: set[str]) -> list[NodeProto]:
    wanted = set(outputs)
    kept: list[NodeProto] = []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
