"""Graphs of every encoder with ONNX Runtime's own operators: the same values, fewer nodes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mllm_export.errors import BuildError
from mllm_export.export import tower_quantize
from mllm_export.export.formats.onnx import write_graph
from mllm_export.export.graph import tower_graph
from mllm_export.export.graph_pass import PASSES, ordered_passes, run_pass, run_passes
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_quantize import quantize_tower
from mllm_export.export.tower_steps import TowerSteps, read_steps, relative_error, write_steps
from mllm_export.spec import VisionSpec

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def random_reader(shapes):
    return lambda name: random_tensor(name, tuple(shapes[name]), 0)


@pytest.fixture(scope="module", params=ENCODERS.names())
def tower(request, tmp_path_factory):
    encoder = ENCODERS[request.param].tiny()
    projector = PROJECTORS["mlp2x_gelu"].spec(encoder.width, 64, encoder.tokens_out)
    graph = tower_graph(VisionSpec(encoders=(encoder,), projector=projector))
    path = tmp_path_factory.mktemp(request.param) / "tower.float.onnx"
    write_graph(path, graph, [random_reader(shapes) for _, shapes in graph.parts])
    return encoder, path


def run(model, seed=0):
    """As it stands: nothing is fused while the session opens."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (port,) = session.get_inputs()
    pixels = np.random.default_rng(seed).standard_normal(port.shape, np.float32)
    return session.run(None, {port.name: pixels})[0]


def test_the_values_stay_and_every_layer_gets_its_operator(tower):
    encoder, path = tower
    plain, fused = onnx.load(path), onnx.load(path)
    found = run_passes(fused)
    assert relative_error(run(plain), run(fused)) < 2e-6  # measured 7e-7
    kinds = Counter(node.op_type for node in fused.graph.node)
    before = Counter(node.op_type for node in plain.graph.node)
    assert found["attention"] == kinds["MultiHeadAttention"] == before["Softmax"] > 0
    assert not kinds["Softmax"]
    assert not kinds["Erf"] + kinds["Tanh"] + kinds["Sigmoid"]
    assert found[ACTIVATIONS[encoder.activation]] > 0
    assert sum(found[name] for name in ACTIVATIONS.values()) == sum(
        before[kind] for kind in ("Erf", "Tanh", "Sigmoid")
    )


def test_weights_norms_and_values_between_layers_keep_their_names(tower):
    _, path = tower
    plain, fused = onnx.load(path), onnx.load(path)
    run_passes(fused)
    assert [e.name for e in fused.graph.initializer] == [e.name for e in plain.graph.initializer]
    for kind in ("LayerNormalization", "MatMul"):
        wanted = {
            (node.input[1], node.output[0])
            for node in plain.graph.node
            if node.op_type == kind and node.input[1].endswith("weight")
        }
        assert wanted == {
            (node.input[1], node.output[0])
            for node in fused.graph.node
            if node.op_type == kind and node.input[1].endswith("weight")
        }


def test_passes_run_behind_those_they_come_after():
    order = ordered_passes()
    assert sorted(order) == PASSES.names()
    for name in order:
        assert set(PASSES[name].after) <= set(order[: order.index(name)])


def graph_of(nodes, **constants):
    held = [
        helper.make_node("Constant", [], [n], value=helper.make_tensor(n, TensorProto.FLOAT, [], v))
        for n, v in constants.items()
    ]
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    made = [helper.make_node(kind, i.split(), [o]) for kind, i, o in nodes]
    graph = helper.make_graph([*held, *made], "g", [port], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


GELU = [
    ("Div", "x root", "a"), ("Erf", "a", "b"), ("Add", "b one", "c"), ("Mul", "half c", "d"),
    ("Mul", "x d", "y"),
]  # fmt: skip
GELU_CONSTANTS = {"root": [2**0.5], "one": [1.0], "half": [0.5]}
QUICK = [("Mul", "x alpha", "a"), ("Sigmoid", "a", "b"), ("Mul", "x b", "y")]


@pytest.mark.parametrize(
    ("name", "nodes", "constants"),
    [
        ("gelu", GELU, GELU_CONSTANTS),
        ("quick_gelu", QUICK, {"alpha": [1.702]}),
        ("quick_gelu", QUICK, {"alpha": [1.0]}),  # SiLU is one of them
    ],
)
def test_an_activation_becomes_one_operator(name, nodes, constants):
    plain, fused = graph_of(nodes, **constants), graph_of(nodes, **constants)
    assert run_pass(fused, name) == 1
    assert len(fused.graph.node) == 1
    np.testing.assert_allclose(run(fused), run(plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "nodes", "constants"),
    [
        ("gelu", GELU, GELU_CONSTANTS | {"root": [1.5]}),
        ("gelu", GELU, GELU_CONSTANTS | {"half": [0.25]}),
        ("gelu", GELU, GELU_CONSTANTS | {"one": [2.0]}),
        ("gelu", [*GELU[:-1], ("Mul", "a d", "y")], GELU_CONSTANTS),
        ("quick_gelu", [*QUICK[:-1], ("Mul", "a b", "y")], {"alpha": [1.702]}),
        ("quick_gelu", [*QUICK[:-1], ("Add", "x b", "y")], {"alpha": [1.702]}),
    ],
)
def test_what_only_looks_like_it_is_left(name, nodes, constants):
    model = graph_of(nodes, **constants)
    before = model.SerializeToString()
    assert run_pass(model, name) == 0
    assert model.SerializeToString() == before


def test_attention_of_other_heads_or_with_a_mask_is_left(tower):
    _, path = tower
    masked = onnx.load(path)
    for node in list(masked.graph.node):
        if node.op_type == "Softmax":
            add = helper.make_node("Add", [node.input[0], node.input[0]], [node.input[0] + "_m"])
            masked.graph.node.insert(list(masked.graph.node).index(node), add)
            node.input[0] += "_m"
    turned = onnx.load(path)
    for node in turned.graph.node:
        if node.op_type == "Transpose" and list(node.attribute[0].ints) == [0, 2, 3, 1]:
            node.attribute[0].ints[:] = [0, 2, 1, 3]
    queries = onnx.load(path)
    for node in queries.graph.node:
        if node.op_type == "Softmax":
            next(a for a in node.attribute if a.name == "axis").i = -2
    for model in (masked, turned, queries):
        assert run_pass(model, "attention") == 0


def test_a_build_tells_what_each_step_moved(tower, tmp_path):
    _, path = tower
    model = onnx.load(path)
    products = [n.input[1] for n in model.graph.node if n.op_type == "MatMul"]
    schemes = {name: "w8a8" for name in products if name.endswith("weight")}
    found = quantize_tower(path, tmp_path / "out.onnx", TowerJob(schemes=schemes, preset="avx2"))
    errors = {step.name: step.relative_error for step in found.steps}
    assert 0 < errors["fused"] < 2e-6 < 1e-3 < errors["quantized"] < 0.2
    assert dict(found.rewrites)["attention"] > 0
    assert read_steps(path) is None
    write_steps(path, found)
    assert read_steps(path) == found
    assert isinstance(found, TowerSteps)
    assert json.loads(path.with_suffix(".steps.json").read_bytes())["inputs"] == 1
    path.with_suffix(".steps.json").unlink()


@pytest.mark.parametrize("fault", ["scale", "activation", "nan"])
def test_a_pass_that_changes_values_builds_nothing(tower, tmp_path, monkeypatch, fault):
    _, path = tower

    def wrong(model):
        found = run_passes(model)
        for node in model.graph.node:
            if fault == "scale" and node.op_type == "MultiHeadAttention":
                next(a for a in node.attribute if a.name == "scale").f *= 1.5
            if fault == "activation" and node.op_type in ("Gelu", "FastGelu", "QuickGelu"):
                node.CopyFrom(
                    helper.make_node("Relu", [node.input[0]], node.output, name=node.name)
                )
            if fault == "nan" and node.op_type == "MultiHeadAttention":
                next(a for a in node.attribute if a.name == "scale").f = float("nan")
        return found

    monkeypatch.setattr(tower_quantize, "run_passes", wrong)
    name = next(e.name for e in onnx.load(path).graph.initializer if "weight" in e.name)
    with pytest.raises(BuildError, match=r"something else once it is fused: relative error"):
        quantize_tower(path, tmp_path / "x.onnx", TowerJob(schemes={name: "f32"}, preset=""))
    assert not (tmp_path / "x.onnx").exists()
