"""A tower whose matrices stay in its file computes what the whole file does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mllm_export.errors import EngineError
from mllm_export.runtimes.engines import VISION_ENGINES
from mllm_export.runtimes.vision import _mapped
from mllm_export.runtimes.vision._mapped import mapped_model

SIDE = 300
IDS = np.arange(SIDE, dtype=np.int64)[None] % 7


def write(path: Path, kind: type[np.generic] = np.int8) -> np.ndarray:
    """A table of `kind`, one row of which each id takes, and a small table of the same kind."""
    draw = np.random.default_rng(5)
    table, small = (draw.integers(0, 100, (n, SIDE)).astype(kind) for n in (SIDE, 7))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Gather", ["small", "ids"], ["others"]),
        helper.make_node("Cast", ["rows"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["others"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "b"], ["sum"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two tables",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, SIDE])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, SIDE, SIDE])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(small, "small")],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return (table[IDS].astype(np.float32) + small[IDS]).astype(np.float32)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_a_large_table_of_bytes_is_mapped_and_gives_the_same_values(
    tmp_path: Path, kind: type[np.generic]
) -> None:
    path = tmp_path / "tower.onnx"
    wanted = write(path, kind)
    made = mapped_model(path)
    assert made is not None
    assert len(made) < 5000 < SIDE * SIDE < path.stat().st_size
    table, small = onnx.load_model_from_string(made).graph.initializer
    assert (table.data_location, small.data_location) == (TensorProto.EXTERNAL, 0)
    run = VISION_ENGINES["onnx"].open_graph(path, None, 1)
    np.testing.assert_array_equal(run(IDS)["sum"], wanted[0][None])
    np.testing.assert_array_equal(
        run(IDS)["sum"], onnxruntime.InferenceSession(str(path)).run(None, {"ids": IDS})[0]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the mappings are listed in /proc")
def test_the_file_is_mapped_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "tower.onnx"
    write(path)
    run = VISION_ENGINES["onnx"].open_graph(path, None, 1)
    assert str(path) in Path("/proc/self/maps").read_text()
    run(IDS)


def test_a_wrong_offset_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tower.onnx"
    wanted = write(path)
    message = _mapped._message

    def shifted(number: int, content: bytes) -> bytes:
        digits = content.isdigit() and int(content) not in (SIDE * SIDE,)
        return message(number, str(int(content) - 1).encode() if digits else content)

    monkeypatch.setattr(_mapped, "_message", shifted)
    run = VISION_ENGINES["onnx"].open_graph(path, None, 1)
    assert not np.array_equal(run(IDS)["sum"], wanted[0][None])


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_wider_types_are_left_where_they_are(tmp_path: Path, kind: type[np.generic]) -> None:
    """They could stand at an address that their type forbids."""
    path = tmp_path / "tower.onnx"
    wanted = write(path, kind)
    assert mapped_model(path) is None
    run = VISION_ENGINES["onnx"].open_graph(path, None, 1)
    np.testing.assert_array_equal(run(IDS)["sum"], wanted[0][None])


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "no graph"])
def test_what_is_no_model_is_left_to_the_engine_to_refuse(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "tower.onnx"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"no model", "cut": whole[:-50], "no graph": b"\x08\x0a"}[damage]
    )
    assert mapped_model(path) is None
    with pytest.raises(EngineError, match=r"tower\.onnx.* refuses"):
        VISION_ENGINES["onnx"].open_graph(path, None, 1)
