"""Tower and projector as one ONNX graph of fixed shape.

The graph is traced on tensors without data, and the weights are attached while the file is
written: at no time are all of them in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.errors import BuildError
from mllm_export.export.formats.onnx_run import run_once
from mllm_export.export.graph import Graph, tower_graph
from mllm_export.export.onnx_stream import OnnxTensor, write_onnx
from mllm_export.export.parts import Reader
from mllm_export.export.stored import stored_shape, to_stored
from mllm_export.progress import Progress, Step, silent
from mllm_export.spec import VisionSpec
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
    from torch import Tensor, nn

OPSET = 18
"""The exporter's own opset; LayerNormalization came with 17. Source: torch.onnx, dynamo=True."""

_STAGE = "tower"


def write_tower(
    path: Path,
    vision: VisionSpec,
    read_tower: Reader,
    read_projector: Reader,
    progress: Progress = silent,
) -> None:
    """Write, check and run once the float32 graph.

    Shapes: pixels f32[1, 3, S, S] of each input -> image_embeds f32[T, D].
    Raises: BuildError when the checker or ONNX Runtime refuses the file.
    """
    write_graph(path, tower_graph(vision), (read_tower, read_projector), progress)


def tower_skeleton(vision: VisionSpec) -> ModelProto:
    """The checked graph without its weights; see `graph_skeleton`."""
    return graph_skeleton(tower_graph(vision))


def write_graph(
    path: Path, graph: Graph, readers: Sequence[Reader], progress: Progress = silent
) -> None:
    """Write, check and run once; `readers` give the values of the graph's parts, in order.

    Raises: BuildError when the checker or ONNX Runtime refuses the file.
    """
    progress(Step(stage=_STAGE, item="tracing the graph", done=0, total=0))
    skeleton = graph_skeleton(graph)
    tensors = [
        _tensor(prefix, name, shape, read)
        for (prefix, parameters), read in zip(graph.parts, readers, strict=True)
        for name, shape in parameters.items()
    ]
    write_onnx(path, skeleton, _told(tensors, progress))
    run_once(path, graph.outputs)


def graph_skeleton(graph: Graph) -> ModelProto:
    """The checked graph without its weights, which the nodes name as they will be stored.

    The same specs give the same bytes; no date, path or source line is in them.
    """
    from onnx import TensorProto

    shapes = graph.stored()
    model = _trace(graph, shapes)
    _strip(model, graph.name)
    _fold_constants_into_nodes(model.graph)
    del model.graph.input[len(graph.inputs) :]  # the weights, which become initializers
    check_graph(model, {name: (TensorProto.FLOAT, shape) for name, shape in shapes.items()})
    return model


def _tensor(prefix: str, name: str, shape: Shape, read: Reader) -> OnnxTensor:
    return OnnxTensor(
        name=prefix + name,
        dtype=np.dtype(np.float32),
        shape=stored_shape(name, shape),
        read=lambda: to_stored(name, read(name)),
    )


def _told(tensors: list[OnnxTensor], progress: Progress) -> Iterator[OnnxTensor]:
    """The same tensors, each telling the progress when it is read."""
    total = sum(tensor.size_bytes for tensor in tensors)
    done = 0
    for tensor in tensors:
        progress(Step(stage=_STAGE, item=tensor.name, done=done, total=total))
        done += tensor.size_bytes
        yield tensor


def _trace(graph: Graph, shapes: Mapping[str, Shape]) -> ModelProto:
    """The exporter's graph; every weight is an input, so that nothing is folded into another."""
    import onnx_ir
    import torch

    dtype = torch.int64 if graph.integer else torch.float32
    program = torch.onnx.export(
        _whole(graph),
        # Never read nor written, so no memory stands behind them.
        (tuple(torch.empty(shape, dtype=dtype) for shape in graph.inputs.values()),),
        kwargs={"weights": {n: torch.empty(s) for n, s in shapes.items()}},
        dynamo=True,
        opset_version=OPSET,
        input_names=[*graph.inputs, *shapes],
        output_names=[*graph.outputs],
        verbose=False,
    )
    assert program is not None, "without a path the exporter returns the program"
    return onnx_ir.to_proto(program.model)


def _whole(graph: Graph) -> nn.Module:
    """The graph as a module that takes its weights as an argument."""
    from torch import nn

    class Whole(nn.Module):
        def forward(
            self, given: tuple[Tensor, ...], weights: Mapping[str, Tensor]
        ) -> tuple[Tensor, ...]:
            return graph.apply(weights, given)

    return Whole().eval()


def _strip(model: ModelProto, name: str) -> None:
    """Remove what the exporter notes on the side: its version, source lines, machine paths."""
    model.producer_name = "mllm-export"
    for field in ("producer_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    graph = model.graph
    graph.name = name
    for message in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")


def _fold_constants_into_nodes(graph: GraphProto) -> None:
    """Turn shapes and scalars into Constant nodes: initializers are the published tensors only."""
    from onnx import helper

    constants = []
    for value in graph.initializer:
        value.ClearField("doc_string")
        constants.append(helper.make_node("Constant", [], [value.name], value=value))
    nodes = [*constants, *graph.node]
    graph.ClearField("initializer")
    graph.ClearField("node")
    graph.node.extend(nodes)


def check_graph(skeleton: ModelProto, shapes: Mapping[str, tuple[int, Shape]]) -> None:
    """Operators, types and shapes, without a weight.

    `shapes` gives ONNX's type number and the shape of every initializer, by name; for the
    checker they are inputs.
    Raises: BuildError with the checker's words.
    """
    import onnx
    from onnx import ModelProto, helper

    model = ModelProto()
    model.CopyFrom(skeleton)
    model.graph.input.extend(
        helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in shapes.items()
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as failure:
        raise BuildError(f"the tower's graph is not valid ONNX: {failure}") from failure
