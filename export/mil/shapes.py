"""What moves values and computes none.

Source: coremltools, ops/defs/iOS15/{tensor_operation,tensor_transformation,scatter_gather}.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.mil_call import Call, Operator

if TYPE_CHECKING:
    from torch import Tensor


def _reshape(call: Call) -> Tensor:
    given = call.tensor("x")
    # Zero keeps a side.
    asked = call.integers("shape")
    return given.reshape([given.shape[i] if side == 0 else side for i, side in enumerate(asked)])


def _concat(call: Call) -> Tensor:
    import torch

    if call.flag("interleave"):
        raise call.error("interleave is not known here")
    return torch.cat(call.tensors("values"), call.integer("axis"))


def _stack(call: Call) -> Tensor:
    import torch

    return torch.stack(call.tensors("values"), call.integer("axis"))


def _split(call: Call) -> tuple[Tensor, ...]:
    given, axis = call.tensor("x"), call.integer("axis")
    if "split_sizes" in call:
        import torch

        return torch.functional.split(given, call.integers("split_sizes"), axis)
    return tuple(given.chunk(call.integer("num_splits"), axis))


def _slice_by_index(call: Call) -> Tensor:
    given = call.tensor("x")
    begin, end = call.integers("begin"), call.integers("end")
    rank = len(begin)
    steps = call.integers("stride", [1] * rank)
    from_start, to_end = call.flags("begin_mask", rank), call.flags("end_mask", rank)
    squeezed = call.flags("squeeze_mask", rank)
    if min(steps) < 1:
        raise call.error(f"steps of {steps} are not known here")
    taken: list[slice | int] = []
    for axis in range(rank):
        if squeezed[axis]:
            taken.append(begin[axis])
            continue
        start = None if from_start[axis] else begin[axis]
        stop = None if to_end[axis] else end[axis]
        taken.append(slice(start, stop, steps[axis]))
    return given[tuple(taken)]


def _slice_by_size(call: Call) -> Tensor:
    given = call.tensor("x")
    pairs = zip(call.integers("begin"), call.integers("size"), strict=True)
    return given[tuple(slice(b, None if n == -1 else b + n) for b, n in pairs)]


def _expand_dims(call: Call) -> Tensor:
    given = call.tensor("x")
    rank = given.ndim + len(call.integers("axes"))
    for axis in sorted(axis % rank for axis in call.integers("axes")):
        given = given.unsqueeze(axis)
    return given


def _squeeze(call: Call) -> Tensor:
    given = call.tensor("x")
    axes = call.integers("axes", [i for i, side in enumerate(given.shape) if side == 1])
    return given.squeeze(tuple(axes))


def _pad(call: Call) -> Tensor:
    from torch.nn import functional

    given, flat = call.tensor("x"), call.integers("pad")
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    around = [one for pair in reversed(pairs) for one in pair]
    mode = call.text("mode", "constant")
    if mode == "constant":
        return functional.pad(given, around, value=call.number("constant_val", 0.0))
    if mode not in ("reflect", "replicate"):
        raise call.error(f"padding '{mode}' is not known here")
    while len(around) > 2 and around[-2:] == [0, 0]:
        around = around[:-2]
    return functional.pad(given, around, mode=mode)


def _gather(call: Call) -> Tensor:
    given, indices = call.tensor("x"), call.tensor("indices").long()
    if call.integer("batch_dims", 0):
        raise call.error("batch_dims is not known here")
    axis = call.integer("axis", 0) % given.ndim
    flat = given.index_select(axis, indices.reshape(-1))
    return flat.reshape(*given.shape[:axis], *indices.shape, *given.shape[axis + 1 :])


OPERATIONS: Mapping[str, Operator] = {
    "concat": _concat,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": lambda call: call.tensor("x").tile(call.integers("reps")),
    "transpose": lambda call: call.tensor("x").permute(call.integers("perm")),
}
