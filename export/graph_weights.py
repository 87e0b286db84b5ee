"""A model's message without the values of its weights, which are handed on beside it.

A message with weights is copied with them at every step: when it is opened, run, or saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.export.parts import Array

if TYPE_CHECKING:
    from onnx import ModelProto


def without_values(model: ModelProto) -> tuple[ModelProto, dict[str, Array]]:
    """A copy whose initializers say name, type and shape alone, and what they hold."""
    from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

    graph = model.graph
    light = ModelProto(**{f.name: v for f, v in model.ListFields() if f.name != "graph"})
    light.graph.CopyFrom(
        GraphProto(**{f.name: v for f, v in graph.ListFields() if f.name != "initializer"})
    )
    light.graph.initializer.extend(
        TensorProto(name=entry.name, dims=entry.dims, data_type=entry.data_type)
        for entry in graph.initializer
    )
    values = {entry.name: np.asarray(numpy_helper.to_array(entry)) for entry in graph.initializer}
    return light, values


def give_values(model: ModelProto, values: Mapping[str, Array]) -> None:
    """Fill every initializer that says name, type and shape alone, in place."""
    from onnx import numpy_helper

    for entry in model.graph.initializer:
        if entry.name in values:
            entry.CopyFrom(numpy_helper.from_array(values[entry.name], entry.name))
