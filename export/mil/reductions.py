"""Sums, means and pools. Source: coremltools, ops/defs/iOS15/{reduction,pool}.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mllm_export.export.mil.products import padding
from mllm_export.export.mil_call import Call, Operator

if TYPE_CHECKING:
    from torch import Tensor


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        given = call.tensor("x")
        axes = call.integers("axes", list(range(given.ndim)))
        return function(given, axes, call.flag("keep_dims"))

    return run


def _argmax(call: Call) -> Tensor:
    # torch, as Core ML, gives the first of equals on the CPU.
    return call.tensor("x").argmax(call.integer("axis", -1), call.flag("keep_dims"))


def _pool_sides(call: Call) -> tuple[Tensor, list[int], list[int], list[int]]:
    from torch.nn import functional

    if call.flag("ceil_mode"):
        raise call.error("ceil_mode is not known here")
    given, kernel = call.tensor("x"), call.integers("kernel_sizes")
    strides = call.integers("strides", [1] * len(kernel))
    around = padding(call, given.shape[2:], kernel, strides)
    fill = float("-inf") if call.operation.type == "max_pool" else 0.0
    return functional.pad(given, around, value=fill), kernel, strides, around


def _avg_pool(call: Call) -> Tensor:
    from torch.nn import functional

    padded, kernel, strides, around = _pool_sides(call)
    mean = functional.avg_pool2d(padded, kernel, strides)
    if not any(around) or not call.flag("exclude_padding_from_average"):
        return mean
    ones = functional.pad(call.tensor("x").new_ones(call.tensor("x").shape), around)
    return mean / functional.avg_pool2d(ones, kernel, strides)


def _max_pool(call: Call) -> Tensor:
    from torch.nn import functional

    padded, kernel, strides, _ = _pool_sides(call)
    return functional.max_pool2d(padded, kernel, strides)


OPERATIONS: Mapping[str, Operator] = {
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "reduce_argmax": _argmax,
    "reduce_l2_norm": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_mean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
}
