"""Streamed ONNX files against the onnx package's own reader and writer."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mllm_export.errors import BuildError
from mllm_export.export.onnx_stream import OnnxTensor, open_onnx, write_onnx

WEIGHTS = {
    "a": np.arange(300, dtype=np.float32).reshape(20, 15),
    "b.weight_quantized": np.arange(-60, 60, dtype=np.int8).reshape(15, 8),
    "zero": np.array([7, 8, 9], np.uint8),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


def skeleton():
    nodes = [
        helper.make_node("Constant", [], ["k"], value=helper.make_tensor("k", 7, [1], [4])),
        helper.make_node("MatMul", ["x", "a"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 15])],
        value_info=[helper.make_tensor_value_info("k", TensorProto.INT64, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.producer_name = "test"
    model.metadata_props.add(key="note", value="kept")
    return model


def tensors(weights=WEIGHTS):
    return [
        OnnxTensor(name=n, dtype=v.dtype, shape=v.shape, read=lambda v=v: v)
        for n, v in weights.items()
    ]


def whole():
    model = skeleton()
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in WEIGHTS.items())
    return model


def test_bytes_are_those_protobuf_writes(tmp_path):
    write_onnx(tmp_path / "m.onnx", skeleton(), tensors())
    assert (tmp_path / "m.onnx").read_bytes() == whole().SerializeToString(deterministic=True)


def test_a_large_tensor_has_a_length_of_several_bytes(tmp_path):
    big = np.random.default_rng(0).standard_normal((300, 301)).astype(np.float32)
    write_onnx(tmp_path / "m.onnx", skeleton(), tensors({"a": big, **WEIGHTS, "a2": big}))
    found = {
        i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    np.testing.assert_array_equal(found["a2"], big)


@pytest.mark.parametrize("limit_bytes", [1 << 31, 100], ids=["one file", "data file"])
def test_what_is_written_is_read_back(tmp_path, limit_bytes):
    write_onnx(tmp_path / "m.onnx", skeleton(), tensors(), limit_bytes)
    opened = open_onnx(tmp_path / "m.onnx")
    assert opened.skeleton == skeleton()
    assert list(opened.tensors) == list(WEIGHTS)
    for name, values in WEIGHTS.items():
        tensor = opened.tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.size_bytes) == (
            values.dtype,
            values.shape,
            values.nbytes,
        )
        np.testing.assert_array_equal(tensor.read(), values)


def test_past_the_limit_the_weights_stand_in_a_data_file_that_onnx_reads(tmp_path):
    write_onnx(tmp_path / "m.onnx", skeleton(), tensors(), limit_bytes=100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    found = onnx.load(tmp_path / "m.onnx").graph.initializer
    for entry in found:
        np.testing.assert_array_equal(numpy_helper.to_array(entry), WEIGHTS[entry.name])


def test_values_in_typed_fields_are_read_too(tmp_path):
    model = skeleton()
    model.graph.initializer.append(helper.make_tensor("a", TensorProto.FLOAT, [2], [1.5, 2.5]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(open_onnx(tmp_path / "m.onnx").tensors["a"].read(), [1.5, 2.5])


@pytest.mark.parametrize("limit_bytes", [1 << 31, 100], ids=["one file", "data file"])
def test_weights_are_read_once_and_each_is_gone_before_the_next(tmp_path, limit_bytes):
    """Arrays and copies of their bytes alike: no more stands at a time than one tensor takes."""
    names, shape = [f"w{number}" for number in range(8)], (256, 1024)
    seen: list[str] = []

    def read(name):
        seen.append(name)
        return np.full(shape, len(seen), np.float32)

    lazy = [
        OnnxTensor(name=n, dtype=np.dtype(np.float32), shape=shape, read=lambda n=n: read(n))
        for n in names
    ]
    tracemalloc.start()
    try:
        write_onnx(tmp_path / "m.onnx", skeleton(), lazy, limit_bytes)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == names
    assert lazy[0].size_bytes <= peak_bytes < 2 * lazy[0].size_bytes


@pytest.mark.parametrize("keep", [1, 50, 900])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    write_onnx(tmp_path / "m.onnx", skeleton(), tensors())
    cut = (tmp_path / "m.onnx").read_bytes()[:keep]
    (tmp_path / "cut.onnx").write_bytes(cut)
    with pytest.raises(BuildError, match=r"cut\.onnx: not an ONNX model"):
        open_onnx(tmp_path / "cut.onnx")
