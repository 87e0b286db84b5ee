"""Matrix products, convolutions, attention.

Source: coremltools, converters/mil/mil/ops/defs/iOS15/{linear,conv}.py and iOS18/transformers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING

from mllm_export.export.mil_call import Call, Operator

if TYPE_CHECKING:
    from torch import Tensor


def _linear(call: Call) -> Tensor:
    from torch.nn import functional

    return functional.linear(call.tensor("x"), call.tensor("weight"), call.optional("bias"))


def _matmul(call: Call) -> Tensor:
    left, right = call.tensor("x"), call.tensor("y")
    if call.flag("transpose_x"):
        left = left.transpose(-1, -2)
    if call.flag("transpose_y"):
        right = right.transpose(-1, -2)
    return left @ right


def _conv(call: Call) -> Tensor:
    import torch
    from torch.nn import functional

    weight = call.tensor("weight")
    axes = weight.ndim - 2
    strides = call.integers("strides", [1] * axes)
    dilations = call.integers("dilations", [1] * axes)
    given = call.tensor("x")
    kernel = [(side - 1) * step + 1 for side, step in zip(weight.shape[2:], dilations, strict=True)]
    before_after = padding(call, given.shape[2:], kernel, strides)
    padded = functional.pad(given, before_after)
    return torch.convolution(
        padded,
        weight,
        call.optional("bias"),
        strides,
        [0] * axes,
        dilations,
        False,
        [0] * axes,
        call.integer("groups", 1),
    )


def padding(call: Call, sides: tuple[int, ...], kernel: list[int], strides: list[int]) -> list[int]:
    """Zeros before and after, last axis first, as torch's `pad` takes them.

    Raises: EngineError for a kind of padding that is not known here.
    """
    kind = call.text("pad_type", "valid")
    if kind == "valid":
        pairs = [(0, 0)] * len(kernel)
    elif kind == "custom":
        flat = call.integers("pad")
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
    elif kind in ("same", "same_lower"):
        pairs = []
        for side, width, step in zip(sides, kernel, strides, strict=True):
            total = max(0, (-(-side // step) - 1) * step + width - side)
            less, more = total // 2, total - total // 2
            pairs.append((less, more) if kind == "same" else (more, less))
    else:
        raise call.error(f"padding '{kind}' is not known here")
    return [one for pair in reversed(pairs) for one in pair]


def _attention(call: Call) -> Tensor:
    query, key, value = call.tensor("query"), call.tensor("key"), call.tensor("value")
    scores = (query / sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    call.peak = float(scores.abs().max())
    mask = call.optional("attn_mask")
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -1e30)
    return scores.softmax(-1) @ value


OPERATIONS: Mapping[str, Operator] = {
    "conv": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
