"""Element by element, on one tensor or two that broadcast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mllm_export.export.mil_call import Call, Operator

if TYPE_CHECKING:
    from torch import Tensor


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor("x"), call.tensor("y"))


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor("x"))


def _rsqrt(call: Call) -> Tensor:
    return (call.tensor("x") + call.number("epsilon", 1e-12)).rsqrt()


def _inverse(call: Call) -> Tensor:
    return 1 / (call.tensor("x") + call.number("epsilon", 1e-4))


def _clip(call: Call) -> Tensor:
    return call.tensor("x").clamp(call.number("alpha"), call.number("beta"))


def _cast(call: Call) -> Tensor:
    kind = call.text("dtype", "fp32")
    given = call.tensor("x")
    if kind in ("fp16", "fp32"):
        return given.float()
    if kind == "bool":
        return given != 0
    whole = given.trunc().long() if given.is_floating_point() else given.long()
    # Narrow integers wrap around, as they do where the program runs.
    bits = int(kind.lstrip("uint"))
    wrapped = whole & ((1 << bits) - 1)
    if kind.startswith("u"):
        return wrapped
    return wrapped - ((wrapped >> (bits - 1)) << bits)


def _select(call: Call) -> Tensor:
    return call.tensor("a").where(call.tensor("cond").bool(), call.tensor("b"))


OPERATIONS: Mapping[str, Operator] = {
    "add": _two(lambda x, y: x + y),
    "sub": _two(lambda x, y: x - y),
    "mul": _two(lambda x, y: x * y),
    "real_div": _two(lambda x, y: x / y),
    "maximum": _two(lambda x, y: x.maximum(y)),
    "minimum": _two(lambda x, y: x.minimum(y)),
    "pow": _two(lambda x, y: x**y),
    "abs": _one(lambda x: x.abs()),
    "sqrt": _one(lambda x: x.sqrt()),
    "square": _one(lambda x: x.square()),
    "exp": _one(lambda x: x.exp()),
    "erf": _one(lambda x: x.erf()),
    "identity": _one(lambda x: x),
    "rsqrt": _rsqrt,
    "inverse": _inverse,
    "clip": _clip,
    "cast": _cast,
    "equal": _two(lambda x, y: x == y),
    "greater": _two(lambda x, y: x > y),
    "greater_equal": _two(lambda x, y: x >= y),
    "less": _two(lambda x, y: x < y),
    "select": _select,
}
