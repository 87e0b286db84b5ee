"""Which tensors the tower's ONNX file stores, and how large: no weights, no graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.stored import PROJECTOR, TOWER, is_linear, stored_shape
from mllm_export.plan import TensorPlan
from mllm_export.spec import EncoderSpec, ProjectorSpec
from mllm_export.weights import Shape

QUANTIZED = "_quantized"
SCALE = "_scale"
ZERO_POINT = "_zero_point"
"""Endings of what stands for a quantized weight. Source: onnxruntime.quantization, 1.20 on."""

_FLOAT_BYTES = 4
_CONV_NOTE = "f32 instead of w8a8: convolutions hold few of the weights"
_EMBEDDING_NOTE = "f32 instead of w8a8: added, not multiplied"
_VECTOR_NOTE = "f32 instead of w8a8: norms and biases act on float activations"


def plan_tower_tensors(
    encoder: EncoderSpec,
    projector: ProjectorSpec,
    tower_sources: Mapping[str, str],
    projector_sources: Mapping[str, str],
    scheme: str,
) -> tuple[TensorPlan, ...]:
    """One row per stored initializer, for scheme f32 or w8a8.

    The sources give each parameter's name in the checkpoint.
    """
    parts = (
        (TOWER, ENCODERS[encoder.kind].parameters(encoder), tower_sources),
        (PROJECTOR, PROJECTORS[projector.kind].parameters(projector), projector_sources),
    )
    return tuple(
        row
        for prefix, parameters, sources in parts
        for name, shape in parameters.items()
        for row in _rows(prefix, name, shape, sources[name], scheme)
    )


def _rows(prefix: str, name: str, shape: Shape, source: str, scheme: str) -> Iterator[TensorPlan]:
    stored = stored_shape(name, shape)
    if scheme == "w8a8" and is_linear(name, shape):
        yield from _quantized_rows(prefix + name, stored, source)
        return
    yield TensorPlan(
        name=prefix + name,
        sources=(source,),
        shape=stored,
        scheme="f32",
        size_bytes=_FLOAT_BYTES * prod(stored),
        note=_why_float(name, shape) if scheme == "w8a8" else "",
    )


def _quantized_rows(name: str, stored: Shape, source: str) -> Iterator[TensorPlan]:
    columns = (stored[1],)
    for ending, shape, scheme, item_bytes, note in (
        (QUANTIZED, stored, "w8a8", 1, ""),
        (SCALE, columns, "f32", _FLOAT_BYTES, "step of each output column"),
        (ZERO_POINT, columns, "w8a8", 1, "zero of each output column"),
    ):
        yield TensorPlan(
            name=name + ending,
            sources=(source,),
            shape=shape,
            scheme=scheme,
            size_bytes=item_bytes * prod(shape),
            note=note,
        )


def _why_float(name: str, shape: Shape) -> str:
    if len(shape) == 4:
        return _CONV_NOTE
    return _EMBEDDING_NOTE if "embedding" in name else _VECTOR_NOTE
