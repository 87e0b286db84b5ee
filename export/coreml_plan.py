"""Which tensors the Core ML tower stores, how, and how large: no weights, no graph."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_scheme import COREML_SCHEMES, FLOAT, coreml_word, require_opset
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.stored import (
    PROJECTOR,
    TOWER,
    is_linear,
    is_matrix_name,
    stored_shape,
)
from mllm_export.plan import TensorPlan
from mllm_export.spec import EncoderSpec, ProjectorSpec
from mllm_export.weights import Shape

_HALF_BYTES = 2


def plan_coreml_tensors(
    encoder: EncoderSpec,
    projector: ProjectorSpec,
    sources: Mapping[str, str],
    word: str,
    options: CoremlOptions,
) -> tuple[TensorPlan, ...]:
    """One row per published tensor, named and laid out as in the ONNX file.

    `sources` gives each tensor's name in the checkpoint, by its name with its prefix; `word` is
    the recipe's. Raises: PlanError for a scheme that Core ML, or the target's system, lacks.
    """
    scheme, note = coreml_word(word)
    require_opset(scheme, options)
    parts = (
        (TOWER, ENCODERS[encoder.kind].parameters(encoder)),
        (PROJECTOR, PROJECTORS[projector.kind].parameters(projector)),
    )
    return tuple(
        _row(prefix + name, name, shape, sources[prefix + name], scheme, note)
        for prefix, parameters in parts
        for name, shape in parameters.items()
    )


def _row(stored: str, name: str, shape: Shape, source: str, scheme: str, note: str) -> TensorPlan:
    refused = "" if scheme == FLOAT else why_float(scheme, name, shape)
    if refused:
        note = f"f16 instead of {scheme}: {refused}"
    chosen = FLOAT if refused else scheme
    size_bytes = (
        _HALF_BYTES * prod(shape)
        if chosen == FLOAT
        else COREML_SCHEMES[chosen].size_bytes(matrix(shape))
    )
    return TensorPlan(
        name=stored,
        sources=(source,),
        shape=stored_shape(name, shape),
        scheme=chosen,
        size_bytes=size_bytes,
        note=note,
    )


def why_float(scheme: str, name: str, shape: Shape) -> str:
    """Why a scheme cannot hold a published tensor; empty when it can."""
    multiplied = name.endswith("weight") and (len(shape) > 2 or is_matrix_name(name))
    if not multiplied or len(shape) < 2:
        return "added, or a norm's: not multiplied"
    return COREML_SCHEMES[scheme].refuses(matrix(shape))


def matrix(shape: Shape) -> Shape:
    """The shape in the program: a 1x1 convolution is a linear map there, [out, in]."""
    return shape[:2] if is_linear("weight", shape) else shape
