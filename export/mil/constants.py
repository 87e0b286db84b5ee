"""Weights that are stored otherwise than they are used.

Source: coremltools, converters/mil/mil/ops/defs/iOS16/constexpr_ops.py and iOS18/compression.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mllm_export.export.mil_call import Call, Operator

if TYPE_CHECKING:
    from torch import Tensor


def _affine_dequantize(call: Call) -> Tensor:
    """The formula is scale * (data - zero_point), each along one axis."""
    data, axis = call.tensor("quantized_data").float(), call.integer("axis")
    sides = [-1 if place == axis % data.ndim else 1 for place in range(data.ndim)]
    scale, zero = call.tensor("scale").float(), call.tensor("zero_point").float()
    return scale.reshape(sides if scale.ndim else []) * (
        data - zero.reshape(sides if zero.ndim else [])
    )


def _blockwise_shift_scale(call: Call) -> Tensor:
    """The formula is scale * (data - offset); each scale and offset is for a block."""
    data = call.tensor("data").float()
    moved = data - _spread(call.tensor("offset").float(), data) if "offset" in call else data
    return _spread(call.tensor("scale"), data) * moved


def _spread(blocks: Tensor, data: Tensor) -> Tensor:
    """Repeat every value over its block. Shapes: rank by rank, data's is a multiple."""
    for axis, (side, count) in enumerate(zip(data.shape, blocks.shape, strict=True)):
        blocks = blocks.repeat_interleave(side // count, axis)
    return blocks


def _lut_to_dense(call: Call) -> Tensor:
    indices, palette = call.tensor("indices"), call.tensor("lut")
    if "shape" in call:
        return _packed_lut(call, indices, palette)
    if palette.shape[-1] != 1:
        raise call.error("palettes of vectors are not known here")
    # lut is [groups along each axis ..., entries, 1].
    flat = palette.reshape(-1, palette.shape[-2])
    groups = palette.shape[:-2]
    place = indices.new_zeros(indices.shape)
    for axis, (side, count) in enumerate(zip(indices.shape, groups, strict=True)):
        along = indices.new_tensor(range(side)) // (side // count)
        shape = [side if other == axis else 1 for other in range(indices.ndim)]
        place = place * count + along.reshape(shape)
    return flat[place, indices]


def _packed_lut(call: Call, packed: Tensor, palette: Tensor) -> Tensor:
    """The older form: one palette, indices as bits, lowest first within a byte."""
    import torch

    shape = call.integers("shape")
    bits = (palette.numel() - 1).bit_length()
    places = torch.arange(8)
    stream = ((packed.reshape(-1, 1) >> places) & 1).reshape(-1)
    count = 1
    for side in shape:
        count *= side
    taken = stream[: count * bits].reshape(count, bits)
    indices = (taken << torch.arange(bits)).sum(1)
    return palette.reshape(-1)[indices].reshape(shape)


def _constexpr_cast(call: Call) -> Tensor:
    return call.tensor("source_val").float()


OPERATIONS: Mapping[str, Operator] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _constexpr_cast,
    "constexpr_lut_to_dense": _lut_to_dense,
}
