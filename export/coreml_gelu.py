"""GELU as the one operation of Core ML that says which it is.

    mul(x, sigmoid(mul(x, 1.702)))  ->  gelu(x, SIGMOID_APPROXIMATION)
    gelu(x, approximate=tanh)       ->  gelu(x, TANH_APPROXIMATION)

coremltools 9.0 drops the second one's keyword when it reads an exported program, and takes the
form by the error function for it; of the first it would keep 1.702 in float16, off by 9e-5.
Source: apple/coremltools, converters/mil/frontend/torch/ops.py, gelu; ops/defs/iOS15/activation.py.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from mllm_export.export.coreml_tools import coremltools
from mllm_export.export.fused_attention import is_call

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_QUICK = 1.702
_NAME = "mllm_export::gelu"


def name_gelus(program: ExportedProgram) -> int:
    """Rewrite every GELU in place; returns how many there were."""
    import torch

    _declare()
    graph = program.graph_module.graph
    found = [(node, *form) for node in graph.nodes if (form := _form(node))]
    for node, given, mode in found:
        with graph.inserting_before(node):
            whole = graph.call_function(torch.ops.mllm_export.gelu.default, (given, mode))
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return len(found)


def _form(node: Any) -> tuple[Any, str] | None:
    """What a GELU is of, and Core ML's word for it; None for another operation."""
    if is_call(node, "gelu"):
        by_tanh = node.kwargs.get("approximate", "none") == "tanh"
        return node.args[0], "TANH_APPROXIMATION" if by_tanh else "EXACT"
    if not is_call(node, "mul"):
        return None
    for given, gate in (node.args, node.args[::-1]):
        if is_call(gate, "sigmoid") and _is_scaled(gate.args[0], given):
            return given, "SIGMOID_APPROXIMATION"
    return None


def _is_scaled(node: Any, given: Any) -> bool:
    """Whether a node is 1.702 times another."""
    if not is_call(node, "mul") or given not in node.args:
        return False
    numbers = [one for one in node.args if isinstance(one, float)]
    return len(numbers) == 1 and math.isclose(numbers[0], _QUICK)


@cache
def _declare() -> None:
    """Tell torch of the operation, and coremltools what it becomes."""
    import torch

    torch.library.define(_NAME, "(Tensor x, str mode) -> Tensor")
    coremltools()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    @register_torch_op(torch_alias=[_NAME])  # type: ignore[untyped-decorator]  # coremltools has no types
    def mllm_export_gelu(context: Any, node: Any) -> None:
        given, mode = _get_inputs(context, node, expected=2)
        context.add(Builder.gelu(x=given, mode=mode, name=node.name))
