"""Changes to a traced tower's graph, each what a wrong exporter would have written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

Edit = Callable[["ModelProto"], None]


def nodes(graph: GraphProto, kind: str) -> list[NodeProto]:
    return [node for node in graph.node if node.op_type == kind]


def using(graph: GraphProto, tensor_end: str) -> NodeProto:
    """The one node that takes the tensor whose name ends so."""
    (found,) = [n for n in graph.node if any(i.endswith(tensor_end) for i in n.input)]
    return found


def taking(graph: GraphProto, value: str) -> list[NodeProto]:
    return [node for node in graph.node if value in node.input]


def instead(graph: GraphProto, old: str, new: str) -> None:
    """Every node that takes `old` takes `new`."""
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == old:
                node.input[at] = new


def constant(graph: GraphProto, name: str) -> np.ndarray:
    from onnx import numpy_helper

    (node,) = [n for n in nodes(graph, "Constant") if n.output[0] == name]
    return numpy_helper.to_array(node.attribute[0].t)


def set_constant(graph: GraphProto, name: str, value: np.ndarray) -> None:
    from onnx import numpy_helper

    (node,) = [n for n in nodes(graph, "Constant") if n.output[0] == name]
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(value))


def insert(graph: GraphProto, before: NodeProto, made: list[NodeProto]) -> None:
    at = next(at for at, node in enumerate(graph.node) if node.output == before.output)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*kept[:at], *made, *kept[at:]])


def last_state(graph: GraphProto) -> str:
    """The hidden state that the projector's side of the graph takes: what is sliced."""
    (sliced,) = nodes(graph, "Slice")
    return str(sliced.input[0])


def keep_cls(model: ModelProto) -> None:
    """The first token stays, and the last is lost for it."""
    graph = model.graph
    (sliced,) = nodes(graph, "Slice")
    start, stop = sliced.input[1], "kept_stop"
    from onnx import helper, numpy_helper

    zero = helper.make_node(
        "Constant", [], ["kept_start"], value=numpy_helper.from_array(np.array([0]))
    )
    minus = helper.make_node("Constant", [], [stop], value=numpy_helper.from_array(np.array([-1])))
    assert constant(graph, start) == 1
    insert(graph, sliced, [zero, minus])
    (sliced,) = nodes(graph, "Slice")
    sliced.input[1], sliced.input[2] = "kept_start", stop


def drop_attention_scale(model: ModelProto) -> None:
    graph = model.graph
    for softmax in nodes(graph, "Softmax"):
        scores = next(n for n in graph.node if softmax.input[0] in n.output)
        scaled = next(n for n in graph.node if scores.input[0] in n.output)
        assert scaled.op_type == "Mul"
        instead(graph, scaled.output[0], scaled.input[0])


def softmax_over_queries(model: ModelProto) -> None:
    for node in nodes(model.graph, "Softmax"):
        (axis,) = [a for a in node.attribute if a.name == "axis"]
        axis.i = -2


def drop_first_norm(model: ModelProto) -> None:
    norm = using(model.graph, "pre_layrnorm.weight")
    instead(model.graph, norm.output[0], norm.input[0])


def add_last_norm(model: ModelProto) -> None:
    """A norm that the selected hidden state does not go through."""
    from onnx import helper, numpy_helper

    graph = model.graph
    (sliced,) = nodes(graph, "Slice")
    norm = nodes(graph, "LayerNormalization")[0]
    epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
    made = [
        helper.make_node(
            "LayerNormalization", [sliced.input[0], norm.input[1], norm.input[2]], ["normed"],
            axis=-1, epsilon=epsilon,
        )
    ]  # fmt: skip
    insert(graph, sliced, made)
    nodes(graph, "Slice")[0].input[0] = "normed"
    del numpy_helper


def drop_residual(model: ModelProto) -> None:
    """LDPv2's convolution without what it is added to."""
    graph = model.graph
    conv = using(graph, "peg.peg.0.weight")
    (added,) = taking(graph, conv.output[0])
    assert added.op_type == "Add"
    instead(graph, added.output[0], conv.output[0])


def max_pool(model: ModelProto) -> None:
    (pool,) = nodes(model.graph, "AveragePool")
    pool.op_type = "MaxPool"
    for attribute in [a for a in pool.attribute if a.name == "count_include_pad"]:
        pool.attribute.remove(attribute)


def picked_pool(model: ModelProto) -> None:
    """Every second token in place of the mean of four."""
    (pool,) = nodes(model.graph, "AveragePool")
    for attribute in pool.attribute:
        if attribute.name == "kernel_shape":
            del attribute.ints[:]
            attribute.ints.extend([1, 1])


def overflow_in_one_layer(model: ModelProto) -> None:
    """One MLP computed in float16, at a scale where its largest values leave its range."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    product = using(graph, "layers.1.mlp.fc1.weight")
    (added,) = taking(graph, product.output[0])
    big = numpy_helper.from_array(np.float32(60000))
    steps = [
        helper.make_node("Constant", [], ["big"], value=big),
        helper.make_node("Mul", [added.output[0], "big"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["whole", "big"], ["back"]),
    ]
    users = taking(graph, added.output[0])
    insert(graph, users[0], steps)
    for node in graph.node:
        if node.output[0] != "scaled":
            for at, name in enumerate(node.input):
                if name == added.output[0]:
                    node.input[at] = "back"


def blind(model: ModelProto) -> None:
    """The pixels times zero."""
    from onnx import helper, numpy_helper

    graph = model.graph
    zero = numpy_helper.from_array(np.float32(0))
    conv = using(graph, "patch_embedding.weight")
    steps = [
        helper.make_node("Constant", [], ["nothing"], value=zero),
        helper.make_node("Mul", [conv.input[0], "nothing"], ["black"]),
    ]
    insert(graph, conv, steps)
    using(graph, "patch_embedding.weight").input[0] = "black"


def without_bias(ending: str) -> Edit:
    """The sum with a bias is left out."""

    def edit(model: ModelProto) -> None:
        added = using(model.graph, ending)
        assert added.op_type == "Add"
        instead(model.graph, added.output[0], added.input[0])

    return edit


def chained(*edits: Edit) -> Edit:
    def edit(model: ModelProto) -> None:
        for one in edits:
            one(model)

    return edit


def names(graph: GraphProto) -> Iterator[str]:
    return (name for node in graph.node for name in node.output)
