"""Norms. Source: coremltools, converters/mil/mil/ops/defs/iOS15/normalization.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.mil_call import Call, Operator

if TYPE_CHECKING:
    from torch import Tensor


def _layer_norm(call: Call) -> Tensor:
    given = call.tensor("x")
    axes = call.integers("axes", list(range(given.ndim)))
    centred = given - given.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    call.peak = float(variance.max())
    normed = centred * (variance + call.number("epsilon", 1e-5)).rsqrt()
    for name, apply in (("gamma", normed.mul), ("beta", None)):
        factor = call.optional(name)
        if factor is None:
            continue
        shape = [
            given.shape[axis] if axis in _positive(axes, given.ndim) else 1
            for axis in range(given.ndim)
        ]
        factor = factor.reshape(shape)
        normed = normed * factor if apply else normed + factor
    return normed


def _positive(axes: list[int], rank: int) -> set[int]:
    return {axis % rank for axis in axes}


def _batch_norm(call: Call) -> Tensor:
    given = call.tensor("x")
    shape = [1, -1, *([1] * (given.ndim - 2))]
    scale = (call.tensor("variance") + call.number("epsilon", 1e-5)).rsqrt()
    made = (given - call.tensor("mean").reshape(shape)) * scale.reshape(shape)
    if "gamma" in call:
        made = made * call.tensor("gamma").reshape(shape)
    return made + call.tensor("beta").reshape(shape) if "beta" in call else made


def _l2_norm(call: Call) -> Tensor:
    given = call.tensor("x")
    axes = tuple(range(given.ndim - 3, given.ndim)) if given.ndim >= 3 else None
    square = given.square().sum(axes, keepdim=True) + call.number("epsilon", 1e-6)
    call.peak = float(square.max())
    return given * square.rsqrt()


OPERATIONS: Mapping[str, Operator] = {
    "batch_norm": _batch_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
}
