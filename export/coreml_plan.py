"""Which tensors a Core ML package stores, how, and how large: no weights, no graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

from mllm_export.errors import PlanError, RecipeError
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_scheme import COREML_SCHEMES, FLOAT, coreml_word, require_opset
from mllm_export.export.graph import Graph, tower_graph
from mllm_export.export.stored import is_linear, is_matrix_name, stored_shape
from mllm_export.plan import TensorPlan
from mllm_export.quantize.tower_recipe import TowerRule, tower_rules
from mllm_export.spec import VisionSpec
from mllm_export.weights import Shape

_HALF_BYTES = 2


def plan_coreml_tensors(
    vision: VisionSpec,
    sources: Mapping[str, str],
    word: str,
    options: CoremlOptions,
    rules: Sequence[TowerRule] = (),
    recipe: str = "",
) -> tuple[TensorPlan, ...]:
    """Tower and projector; see `plan_coreml_graph`."""
    return plan_coreml_graph(tower_graph(vision), sources, word, options, rules, recipe)


def plan_coreml_graph(
    graph: Graph,
    sources: Mapping[str, str],
    word: str,
    options: CoremlOptions,
    rules: Sequence[TowerRule] = (),
    recipe: str = "",
) -> tuple[TensorPlan, ...]:
    """One row per published tensor, named and laid out as in the ONNX file.

    `sources` gives each tensor's name in the checkpoint, by its name with its prefix; `word` is
    the recipe's. Raises: PlanError for a scheme that Core ML, or the target's system, lacks.
    """
    if graph.resizes_positions:
        raise PlanError(
            "the table of positions is stored for another image size than this model's: in a "
            "Core ML package only its resized copy would stand, and could not be held against "
            "the checkpoint; choose a checkpoint of this size, or a target with ONNX"
        )
    ordered = tower_rules(rules, word, f"recipe '{recipe}'")
    parts = graph.parts
    names = [prefix + name for prefix, parameters in parts for name in parameters]
    require_used(recipe, ordered, names)
    rows = []
    for prefix, parameters in parts:
        for name, shape in parameters.items():
            rule = next(r for r in ordered if fnmatchcase(prefix + name, r.tensors))
            scheme, note = coreml_word(rule.scheme)
            require_opset(scheme, options)
            note = note or rule.why
            rows.append(_row(prefix + name, name, shape, sources[prefix + name], scheme, note))
    return tuple(rows)


def require_used(recipe: str, rules: Sequence[TowerRule], names: Sequence[str]) -> None:
    """Raises: RecipeError for a rule that takes no tensor though it is not marked optional."""
    taken = {next(r.tensors for r in rules if fnmatchcase(name, r.tensors)) for name in names}
    for rule in rules:
        if not rule.optional and rule.tensors not in taken:
            raise RecipeError(
                f"recipe '{recipe}': tower rule '{rule.tensors}' takes no tensor of this model; "
                "correct it, or mark it optional = true"
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
