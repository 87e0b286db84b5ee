"""Which tensors a graph's ONNX file stores, and how large: no weights, no graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from mllm_export.export.stored import PROJECTOR, TOWER, is_linear, stored_shape
from mllm_export.export.vision_parts import vision_parts
from mllm_export.plan import TensorPlan
from mllm_export.quantize.tower_recipe import (
    TowerRule,
    TowerTensor,
    choose_tower_schemes,
    tower_rules,
)
from mllm_export.quantize.tower_scheme import BLOCKS, ENDINGS, QUANTIZED, tower_scheme
from mllm_export.spec import VisionSpec
from mllm_export.weights import Shape

Parts = Sequence[tuple[str, Mapping[str, Shape]]]
"""Prefix in the file, and published names with shapes; see Graph.parts."""

_FLOAT_BYTES = 4
_VALUES_PER_BYTE = 2  # of a 4-bit weight


def plan_tower_tensors(
    vision: VisionSpec,
    tower_sources: Mapping[str, str],
    projector_sources: Mapping[str, str],
    scheme: str,
    rules: Sequence[TowerRule] = (),
    recipe: str = "",
) -> tuple[TensorPlan, ...]:
    """Tower and projector; see `plan_graph_tensors`."""
    sources = {
        **{TOWER + name: source for name, source in tower_sources.items()},
        **{PROJECTOR + name: source for name, source in projector_sources.items()},
    }
    return plan_graph_tensors(vision_parts(vision), sources, scheme, rules, recipe)


def plan_graph_tensors(
    parts: Parts,
    sources: Mapping[str, str],
    scheme: str,
    rules: Sequence[TowerRule] = (),
    recipe: str = "",
) -> tuple[TensorPlan, ...]:
    """One row per stored initializer, in the file's order; `scheme` is for what no rule takes.

    `sources` gives each tensor's name in the checkpoint, by its stored name; `recipe` is for
    messages. Raises: RecipeError for a tower rule that takes nothing.
    """
    tensors = _tensors(parts)
    ordered = tower_rules(rules, scheme, f"recipe '{recipe}'")
    choices = choose_tower_schemes(recipe, ordered, tensors)
    return tuple(
        TensorPlan(
            name=tensor.name + part.ending,
            sources=(sources[tensor.name],),
            shape=part.shape,
            scheme=part.scheme,
            size_bytes=part.size_bytes,
            note=part.note or choice.note,
        )
        for tensor, choice in zip(tensors, choices, strict=True)
        for part in tower_scheme(choice.scheme).parts(tensor.shape)
    )


def tower_tensors(vision: VisionSpec) -> tuple[TowerTensor, ...]:
    """Every tensor of tower and projector under its stored name, in the file's order."""
    return _tensors(vision_parts(vision))


def _tensors(parts: Parts) -> tuple[TowerTensor, ...]:
    return tuple(
        TowerTensor(
            name=prefix + name,
            shape=stored_shape(name, shape),
            is_product=is_linear(name, shape),
        )
        for prefix, parameters in parts
        for name, shape in parameters.items()
    )


def planned_schemes(rows: Sequence[TensorPlan]) -> dict[str, str]:
    """The scheme of each tensor by its stored name, from the rows of its initializers."""
    found: dict[str, str] = {}
    beside: set[str] = set()
    for row in rows:
        for ending in (QUANTIZED, BLOCKS):
            if row.name.endswith(ending):
                name = row.name.removesuffix(ending)
                found[name] = row.scheme
                beside.update(name + one for one in ENDINGS)
    return {row.name: row.scheme for row in rows if row.name not in beside} | found


def float_bytes(rows: Sequence[TensorPlan]) -> int:
    """What the tensors take in float32, from the rows of their initializers.

    Error: too much by what fills up the last blocks of 4-bit weights, never too little.
    """
    values = {row.name.removesuffix(QUANTIZED): prod(row.shape) for row in rows}
    for row in rows:
        if row.name.endswith(BLOCKS):
            values[row.name.removesuffix(BLOCKS)] = _VALUES_PER_BYTE * prod(row.shape)
    return _FLOAT_BYTES * sum(values[name] for name in planned_schemes(rows))
