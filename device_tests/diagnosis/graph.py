"""The exported tower, open at its seams: the states between layers, and the projector alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_export.device_tests.reference import Floats
from mllm_export.errors import CheckError
from mllm_export.pixels import tiles_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_WRAPPERS = frozenset({"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear", "Cast"})
"""Behind these the same value stands in another type; the seam is in front of them."""


class TowerGraph:
    """One ONNX graph of tower and projector, whose weights carry their published names."""

    def __init__(self, path: Path) -> None:
        """Raises: CheckError when the file is no ONNX model."""
        import onnx

        try:
            self._model: ModelProto = onnx.load(path)
        except Exception as failure:
            # protobuf's and onnx's errors share no class.
            raise CheckError(f"{path}: not an ONNX model ({failure})") from failure
        self._path = path
        self._nodes: tuple[NodeProto, ...] = tuple(self._model.graph.node)
        self._makers = {name: node for node in self._nodes for name in node.output}
        self._weights = {one.name for one in self._model.graph.initializer}
        self._inputs = {
            one.name: tuple(side.dim_value for side in one.type.tensor_type.shape.dim)
            for one in self._model.graph.input
            if one.name not in self._weights
        }
        self._output = self._model.graph.output[0].name

    @cached_property
    def _fed(self) -> set[str]:
        """Values that depend on the picture."""
        return self._behind(self._inputs.__contains__)

    def _behind(self, starts: Callable[[str], bool]) -> set[str]:
        """Values that depend on one whose name `starts` takes."""
        found: set[str] = set()
        for node in self._nodes:
            if any(name in found or starts(name) for name in node.input):
                found.update(node.output)
        return found

    def entry(self, prefixes: Sequence[str]) -> str:
        """The value from which everything with weights under `prefixes` starts; "" if several.

        A layer with a residual reads its input twice, and it is one value all the same. What
        comes from other inputs of the graph alone is another encoder's, joined further on.
        """
        own = self._behind(lambda name: name.startswith(tuple(prefixes)))
        seams: dict[str, None] = {}
        for node in self._nodes:
            if own.intersection(node.output):
                for name in node.input:
                    if name in self._fed and name not in own:
                        seams[self._unwrapped(name)] = None
        first = next(iter(seams), "")
        source = self._sources(first)
        others = (self._sources(one) for one in seams if one != first)
        return first if all(source.isdisjoint(one) for one in others) else ""

    def _sources(self, name: str) -> set[str]:
        """Inputs of the graph that a value depends on."""
        return {one for one, made in self._fed_by.items() if name == one or name in made}

    @cached_property
    def _fed_by(self) -> dict[str, set[str]]:
        return {one: self._behind(one.__eq__) for one in self._inputs}

    def _unwrapped(self, name: str) -> str:
        node = self._makers.get(name)
        while node is not None and node.op_type in _WRAPPERS:
            name = node.input[0]
            node = self._makers.get(name)
        return name

    def states(self, names: Sequence[str], pixels: Floats) -> list[Floats]:
        """Values inside the graph for one tile. Shapes: f32[1, 3, S, S] -> as in the graph."""
        if not names:  # ONNX Runtime would take it for all outputs
            return []
        wanted = (*names,)
        if wanted not in self._sessions:
            self._sessions[wanted] = self._session(self._with_outputs(names))
        (tile,) = tiles_of(pixels, self._inputs)
        found = self._sessions[wanted].run(list(names), tile)
        return [np.asarray(one, np.float32) for one in found]

    @cached_property
    def _sessions(self) -> dict[tuple[str, ...], Any]:  # onnxruntime has no types
        return {}

    def embed_from(self, name: str, value: Floats) -> Floats:
        """The output for one tile when the value `name` is this. Shapes: -> f32[T, D]."""
        key = ("from", name)
        if key not in self._sessions:
            self._sessions[key] = self._session(self._starting_at(name, value.shape))
        (made,) = self._sessions[key].run([self._output], {name: value})
        return np.asarray(made, np.float32)

    def _with_outputs(self, names: Sequence[str]) -> ModelProto:
        from onnx import ModelProto, ValueInfoProto

        model = ModelProto()
        model.CopyFrom(self._model)
        known = {one.name for one in model.graph.output}
        model.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in known)
        return model

    def _starting_at(self, name: str, shape: tuple[int, ...]) -> ModelProto:
        """The graph behind one value, which becomes its input."""
        from onnx import ModelProto, TensorProto, helper

        nodes = self._needed(name)
        used = {value for node in nodes for value in node.input}
        graph = helper.make_graph(
            nodes,
            self._model.graph.name,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            list(self._model.graph.output),
            [one for one in self._model.graph.initializer if one.name in used],
        )
        model = ModelProto()
        model.CopyFrom(self._model)
        model.graph.CopyFrom(graph)
        return model

    def _needed(self, start: str) -> list[NodeProto]:
        """Nodes between `start` and the output, in the graph's order."""
        wanted = {self._output}
        kept: list[NodeProto] = []
        for node in reversed(self._nodes):
            if wanted.intersection(node.output) and start not in node.output:
                kept.append(node)
                wanted.update(node.input)
        return kept[::-1]

    def _session(self, model: ModelProto) -> Any:  # onnxruntime has no types
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        # Values that are asked for must not be fused away, nor fusion change what is measured.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
