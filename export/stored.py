"""How published tensors of tower and projector stand in the ONNX file: names and layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mllm_export.export.parts import Array, as_float32
from mllm_export.weights import Shape

TOWER = "tower."
"""Stands before a tower's published names in the graph."""

PROJECTOR = "projector."
"""Stands before a projector's published names in the graph."""


def is_linear(name: str, shape: Shape) -> bool:
    """Whether a published tensor is the weight of a linear map: Linear, or a 1x1 convolution."""
    if not is_matrix_name(name):
        return False
    return len(shape) == 2 or (len(shape) == 4 and tuple(shape[2:]) == (1, 1))


def is_matrix_name(name: str) -> bool:
    """Whether a published name is that of a weight which is multiplied, not added."""
    return name.endswith("weight") and "embedding" not in name


def stored_shape(name: str, shape: Shape) -> Shape:
    """Shape in the file: a linear map's [out, in] is stored as [in, out], all else as published.

    MatMul takes it so; stored as published, the graph would hold a Transpose per weight that
    engines fold into a second, anonymous copy.
    """
    return (shape[1], shape[0]) if is_linear(name, shape) else tuple(shape)


def to_stored(name: str, values: Array) -> npt.NDArray[np.float32]:
    """A published tensor's values as the file holds them, in float32, contiguous."""
    floats = as_float32(values)
    if is_linear(name, values.shape):
        floats = floats.reshape(values.shape[:2]).T
    return np.ascontiguousarray(floats)


def to_published(name: str, shape: Shape, stored: Array) -> Array:
    """The inverse of `to_stored`: what the file holds, in the published `shape`."""
    return (stored.T if is_linear(name, shape) else stored).reshape(shape)


def stored_shapes(prefix: str, parameters: Mapping[str, Shape]) -> dict[str, Shape]:
    """Name in the graph to stored shape, in the parameters' order."""
    return {prefix + name: stored_shape(name, shape) for name, shape in parameters.items()}
