"""A tower's graph in pieces that are worked on one at a time, so that its size does not matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.export.onnx_stream import OnnxFile, OnnxTensor
from mllm_export.export.parts import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PIECE_BYTES = 96 << 20
"""Weights worked on at a time; onnxruntime.quantization holds about five copies of them."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of nodes that leaves one value behind, from inputs and what earlier pieces left."""

    nodes: tuple[NodeProto, ...]
    inputs: tuple[str, ...]
    output: str
    also: tuple[str, ...]
    """Outputs of the whole graph that are made on the way, the one left behind aside."""
    tensors: tuple[OnnxTensor, ...]

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def split(source: OnnxFile, piece_bytes: int) -> list[Piece]:
    """Cut the graph where one value alone is alive and enough weights have come together.

    Inputs do not count, nor the features of an encoder that is done: it is cut off before the
    next one begins, and what it gave waits until both are joined.
    """
    graph = source.skeleton.graph
    constants = {n.output[0]: n for n in graph.node if n.op_type == "Constant"}
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    last_use = {name: at for at, node in enumerate(nodes) for name in node.input}
    # Other outputs are left as they come, and need no later piece to carry them.
    last_use[graph.output[0].name] = len(nodes)
    given = {value.name for value in graph.input}
    alive: set[str] = set()
    start, known = 0, {*given}
    pieces: list[Piece] = []
    for at, node in enumerate(nodes):
        alive.update(node.output)
        alive = {name for name in alive if last_use.get(name, -1) > at}
        if len(alive) > 1:
            continue
        (value,) = alive
        piece = _piece(source, constants, nodes[start : at + 1], known, value)
        is_done = at + 1 == len(nodes) or not given.isdisjoint(nodes[at + 1].input)
        if piece.size_bytes >= piece_bytes or is_done:
            pieces.append(piece)
            start = at + 1
            known.add(value)
        if is_done:
            alive.clear()
    return pieces


def _piece(
    source: OnnxFile,
    constants: Mapping[str, NodeProto],
    nodes: list[NodeProto],
    known: set[str],
    value: str,
) -> Piece:
    used = dict.fromkeys(name for node in nodes for name in node.input)
    return Piece(
        nodes=(*(constants[name] for name in used if name in constants), *nodes),
        inputs=tuple(name for name in used if name in known),
        output=value,
        also=tuple(
            port.name
            for port in source.skeleton.graph.output
            if port.name != value and any(port.name in node.output for node in nodes)
        ),
        tensors=tuple(source.tensors[name] for name in used if name in source.tensors),
    )


def piece_model(source: OnnxFile, piece: Piece) -> ModelProto:
    """The piece as a model of its own, with its weights. Every node has a name."""
    from onnx import helper, numpy_helper

    graph = source.skeleton.graph
    types = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    return helper.make_model(
        helper.make_graph(
            piece.nodes,
            "piece",
            [types[name] for name in piece.inputs],
            [types[name] for name in (piece.output, *piece.also)],
            value_info=[types[o] for node in piece.nodes for o in node.output if o in types],
            initializer=[numpy_helper.from_array(t.read(), t.name) for t in piece.tensors],
        ),
        opset_imports=source.skeleton.opset_import,
        ir_version=source.skeleton.ir_version,
    )


class Joined:
    """The pieces, put together again."""

    def __init__(self, source: OnnxFile) -> None:
        """`source` gives the inputs, the outputs and the types of the values."""
        self._source = source
        self._nodes: dict[str, NodeProto] = {}
        self._domains: dict[str, int] = {}
        self.tensors: dict[str, OnnxTensor] = {}

    def add(self, model: ModelProto) -> None:
        """Take over a piece's nodes and weights."""
        for node in model.graph.node:
            # Constants are in every piece that uses them, all else is in one.
            known = self._nodes.setdefault(node.output[0], node)
            assert known is node or node.op_type == "Constant", node.name
        for domain in model.opset_import:
            self._domains[domain.domain] = domain.version
        self.tensors.update((t.name, t) for t in _held(model.graph.initializer))

    def skeleton(self, notes: Mapping[str, str]) -> ModelProto:
        """The whole graph without its weights; `notes` become its metadata."""
        from onnx import ModelProto, helper

        model = ModelProto()
        model.CopyFrom(self._source.skeleton)
        graph = model.graph
        values = list(graph.value_info)
        for field in ("node", "value_info"):
            graph.ClearField(field)
        graph.node.extend(self._nodes.values())
        made = {name for node in self._nodes.values() for name in node.output}
        graph.value_info.extend(value for value in values if value.name in made)
        model.ClearField("opset_import")
        for domain, version in sorted(self._domains.items()):
            model.opset_import.add(domain=domain, version=version)
        if notes:
            helper.set_model_props(model, dict(sorted(notes.items())))
        return model

    def shapes(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """ONNX's type number and the shape of every weight."""
        from onnx import helper

        return {
            name: (helper.np_dtype_to_tensor_dtype(tensor.dtype), tensor.shape)
            for name, tensor in self.tensors.items()
        }


def _held(initializers: Iterable[object]) -> Iterable[OnnxTensor]:
    from onnx import numpy_helper

    for entry in initializers:
        values = np.asarray(numpy_helper.to_array(entry))
        yield held_tensor(entry.name, values)  # type: ignore[attr-defined]  # a TensorProto


def held_tensor(name: str, values: Array) -> OnnxTensor:
    """A tensor whose values are in memory."""
    return OnnxTensor(name=name, dtype=values.dtype, shape=values.shape, read=lambda: values)


def products(model: ModelProto, wanted: Iterable[str]) -> list[NodeProto]:
    """The matrix products of which one of the `wanted` weights is the second factor."""
    names = set(wanted)
    return [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in names]
