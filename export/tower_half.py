"""Tensors kept as float16 in the file and turned back while the model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.errors import BuildError

if TYPE_CHECKING:
    from onnx import ModelProto

WIDENED = "_f32"
"""Ending of the value that the Cast gives."""

_LARGEST = float(np.finfo(np.float16).max)


def store_half(model: ModelProto, names: Iterable[str]) -> None:
    """Store these initializers as float16, with a Cast before whoever reads them.

    ONNX Runtime folds the Cast when it opens the file: the file is half as large, the memory
    is not. Few of its CPU kernels compute in float16.
    Raises: BuildError for a value past what float16 holds.
    """
    from onnx import TensorProto, helper, numpy_helper

    wanted = set(names)
    casts = []
    for entry in model.graph.initializer:
        if entry.name not in wanted:
            continue
        values = numpy_helper.to_array(entry)
        if float(np.abs(values).max(initial=0.0)) > _LARGEST:
            raise BuildError(
                f"tensor '{entry.name}' holds {np.abs(values).max():g}, float16 ends at "
                f"{_LARGEST:g}; give it the scheme f32"
            )
        name = entry.name
        entry.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
        casts.append(
            helper.make_node("Cast", [name], [name + WIDENED], name + "_cast", to=TensorProto.FLOAT)
        )
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name in wanted:
                node.input[at] = name + WIDENED
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
