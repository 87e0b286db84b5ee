"""A fixed calculation, timed beside the stages: how fast the machine itself was meanwhile.

A stage that takes longer because other programs have the cores takes the yardstick with it; one
that takes longer by itself does not.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_SIDE = 256
_PRODUCTS = 64
"""About a small tower's time: a shorter one is interrupted wholly or not at all."""
_TIMES = 2
"""A round of each; quartiles of single times would say little."""


class Yardstick:
    """Products one after the other, each split among threads that wait for each other.

    So does a tower, whose threads lose more to other programs than their share of the cores.
    """

    def __init__(self, threads: int) -> None:
        """`threads` is how many the widest stage has; one is measured too."""
        graph = _graph()
        self._sessions = {count: _open(graph, count) for count in sorted({1, threads})}
        self._values = np.ones((_SIDE, _SIDE), np.float32)
        self.times_ms: dict[int, list[float]] = {count: [] for count in self._sessions}
        self._round()  # the first run of a session also allocates

    def measure(self) -> None:
        """With each number of threads."""
        for _ in range(_TIMES):
            for count, took in self._round().items():
                self.times_ms[count].append(took)

    def _round(self) -> dict[int, float]:
        found = {}
        for count, session in self._sessions.items():
            start = perf_counter()
            session.run(None, {"in0": self._values})
            found[count] = 1000 * (perf_counter() - start)
        return found


def _graph() -> bytes:
    """A row of products with one matrix, each a node of its own."""
    weight = numpy_helper.from_array(np.full((_SIDE, _SIDE), 1 / _SIDE, np.float32), "weight")
    nodes = [
        helper.make_node("MatMul", [f"in{at}", "weight"], [f"in{at + 1}"])
        for at in range(_PRODUCTS)
    ]
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIDE, _SIDE])
        for name in ("in0", f"in{_PRODUCTS}")
    )
    graph = helper.make_graph(nodes, "yardstick", [given], [made], [weight])
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(model.SerializeToString())


def _open(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """As the runtime opens a tower; see runtimes/vision/onnx.py."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
