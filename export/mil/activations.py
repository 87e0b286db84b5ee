"""Activations. Source: coremltools, converters/mil/mil/ops/defs/iOS15/activation.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.mil_call import Call, Operator

if TYPE_CHECKING:
    from torch import Tensor


def _gelu(call: Call) -> Tensor:
    from torch.nn import functional

    given, mode = call.tensor("x"), call.text("mode", "EXACT")
    if mode == "EXACT":
        return functional.gelu(given)
    if mode == "TANH_APPROXIMATION":
        return functional.gelu(given, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return given * (1.702 * given).sigmoid()
    raise call.error(f"GELU of mode '{mode}' is not known here")


def _sigmoid_hard(call: Call) -> Tensor:
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    return (alpha * call.tensor("x") + beta).clamp(0, 1)


def _thresholded_relu(call: Call) -> Tensor:
    given, alpha = call.tensor("x"), call.number("alpha", 1.0)
    return given.where(given >= alpha, given.new_zeros(()))


def _leaky_relu(call: Call) -> Tensor:
    given = call.tensor("x")
    return given.where(given >= 0, given * call.number("alpha", 0.01))


def _softmax(call: Call) -> Tensor:
    return call.tensor("x").softmax(call.integer("axis", -1))


OPERATIONS: Mapping[str, Operator] = {
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "relu": lambda call: call.tensor("x").relu(),
    "relu6": lambda call: call.tensor("x").clamp(0, 6),
    "sigmoid": lambda call: call.tensor("x").sigmoid(),
    "sigmoid_hard": _sigmoid_hard,
    "silu": lambda call: call.tensor("x") * call.tensor("x").sigmoid(),
    "softmax": _softmax,
    "tanh": lambda call: call.tensor("x").tanh(),
    "thresholded_relu": _thresholded_relu,
}
