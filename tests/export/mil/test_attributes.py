"""Operations over drawn attributes, each against torch or numpy.

`test_operations.py` holds what a saved program gives; here the arguments are drawn, so that a
default, an axis or a border that only another model uses is held as well.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as draw
from torch.nn import functional

from mllm_export.errors import EngineError
from mllm_export.export.mil_call import Call
from mllm_export.export.mil_evaluator import operators
from mllm_export.export.mil_program import Operation, Result

some = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def call(kind, **arguments):
    """`None` is an argument that is not given; lists become tensors, as constants do."""
    operation = Operation(
        type=kind, inputs={}, attributes={}, results=(Result(name="r", type="FLOAT32", shape=()),)
    )
    held = {
        name: one if isinstance(one, list) and torch.is_tensor(one[0]) else [as_argument(one)]
        for name, one in arguments.items()
        if one is not None
    }
    return operators()[kind](Call(operation, held))


def as_argument(value):
    if isinstance(value, str) or torch.is_tensor(value):
        return value
    return torch.tensor(value)


def values(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(ours, theirs):
    assert tuple(ours.shape) == tuple(theirs.shape)
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def shapes(least=1, most=4):
    return draw.lists(draw.integers(1, 5), min_size=least, max_size=most)


def maybe(strategy):
    return draw.none() | strategy


SMALL = draw.integers(1, 3)
PAIR = draw.tuples(SMALL, SMALL)
BORDER = draw.tuples(*[draw.integers(0, 2)] * 4)


@some
@given(
    kernel=PAIR, strides=maybe(PAIR), dilations=maybe(PAIR), border=BORDER,
    kind=draw.sampled_from(["valid", "custom", "same", "same_lower"]),
    groups=draw.sampled_from([None, 1, 2, 4]), biased=draw.booleans(),
)  # fmt: skip
def test_conv(kernel, strides, dilations, border, kind, groups, biased):
    x, weight = values(1, 4, 9, 8), values(8, 4 // (groups or 1), *kernel, seed=1)
    bias = values(8, seed=2) if biased else None
    step, wide = strides or (1, 1), dilations or (1, 1)
    made = call(
        "conv", x=x, weight=weight, bias=bias, groups=groups, pad_type=kind,
        strides=None if strides is None else list(strides),
        dilations=None if dilations is None else list(dilations),
        pad=list(border) if kind == "custom" else None,
    )  # fmt: skip
    around = borders(kind, border, (9, 8), kernel, step, wide)
    padded = functional.pad(x, around)
    near(made, functional.conv2d(padded, weight, bias, step, 0, wide, groups or 1))


def borders(kind, border, sides, kernel, step, wide):
    """As torch's `pad` takes them. `same`: a side of ceil(side / step), the odd row behind."""
    if kind == "custom":
        top, bottom, left, right = border
        return [left, right, top, bottom]
    found = []
    for side, width, by, gap in reversed(list(zip(sides, kernel, step, wide, strict=True))):
        made = -(-side // by)
        missing = max((made - 1) * by + (width - 1) * gap + 1 - side, 0) if "same" in kind else 0
        less = missing // 2
        found += [missing - less, less] if kind == "same_lower" else [less, missing - less]
    return found


@some
@given(
    kernel=PAIR, strides=maybe(PAIR), border=draw.tuples(*[draw.integers(0, 1)] * 2),
    kind=draw.sampled_from(["avg_pool", "max_pool"]), without=draw.booleans(),
)  # fmt: skip
def test_pools(kernel, strides, border, kind, without):
    assume(all(2 * around <= side for around, side in zip(border, kernel, strict=True)))
    x, step = values(1, 3, 9, 8), strides or (1, 1)
    (top, left) = border
    made = call(
        kind, x=x, kernel_sizes=list(kernel), pad_type="custom", pad=[top, top, left, left],
        strides=None if strides is None else list(strides),
        exclude_padding_from_average=without if kind == "avg_pool" else None, ceil_mode=False,
    )  # fmt: skip
    if kind == "max_pool":
        near(made, functional.max_pool2d(x, kernel, step, border))
    else:
        theirs = functional.avg_pool2d(x, kernel, step, border, count_include_pad=not without)
        near(made, theirs)


@some
@given(shape=shapes(2), data=draw.data())
def test_slice_by_index(shape, data):
    x, rank = values(*shape), len(shape)
    masks = [data.draw(draw.lists(draw.booleans(), min_size=rank, max_size=rank)) for _ in "abc"]
    from_start, to_end, squeezed = masks
    begin = [data.draw(draw.integers(-side, side - 1)) for side in shape]
    end = [data.draw(draw.integers(-side, side)) for side in shape]
    steps = [data.draw(draw.integers(1, 3)) for _ in shape]
    made = call(
        "slice_by_index", x=x, begin=begin, end=end, stride=steps,
        begin_mask=from_start, end_mask=to_end, squeeze_mask=squeezed,
    )  # fmt: skip
    taken = tuple(
        begin[at]
        if squeezed[at]
        else slice(
            None if from_start[at] else begin[at], None if to_end[at] else end[at], steps[at]
        )
        for at in range(rank)
    )
    np.testing.assert_array_equal(made.numpy(), x.numpy()[taken])


@some
@given(shape=shapes(1), data=draw.data(), keep=draw.booleans())
@pytest.mark.parametrize("kind", ["reduce_l2_norm", "reduce_max", "reduce_mean", "reduce_sum"])
def test_reductions(kind, shape, data, keep):
    x, rank = values(*shape), len(shape)
    axes = data.draw(maybe(draw.sets(draw.integers(0, rank - 1), min_size=1)))
    signed = None if axes is None else [a - rank * data.draw(draw.integers(0, 1)) for a in axes]
    made = call(kind, x=x, axes=signed, keep_dims=keep)
    over = tuple(range(rank)) if axes is None else tuple(axes)
    theirs = {
        "reduce_max": lambda a: np.max(a, over, keepdims=keep),
        "reduce_mean": lambda a: np.mean(a, over, keepdims=keep),
        "reduce_sum": lambda a: np.sum(a, over, keepdims=keep),
        "reduce_l2_norm": lambda a: np.sqrt(np.sum(a * a, over, keepdims=keep)),
    }[kind](x.numpy().astype(np.float64))
    near(made, torch.as_tensor(np.asarray(theirs, np.float32)))


@some
@given(
    shape=shapes(2), count=draw.integers(1, 3), gamma=draw.booleans(), beta=draw.booleans(),
    negative=draw.booleans(), epsilon=draw.sampled_from([None, 1e-6, 1e-3]),
)  # fmt: skip
def test_layer_norm(shape, count, gamma, beta, negative, epsilon):
    rank, count = len(shape), min(count, len(shape))
    inner = shape[-count:]
    x = values(*shape)
    axes = [at - rank if negative else at for at in range(rank - count, rank)]
    scale = values(*inner, seed=1) if gamma else None
    shift = values(*inner, seed=2) if beta else None
    made = call("layer_norm", x=x, axes=axes, gamma=scale, beta=shift, epsilon=epsilon)
    near(made, functional.layer_norm(x, inner, scale, shift, epsilon or 1e-5))


@some
@given(
    left=draw.booleans(), right=draw.booleans(), batch=shapes(0, 2), rows=SMALL, inner=SMALL,
    columns=SMALL,
)  # fmt: skip
def test_matmul(left, right, batch, rows, inner, columns):
    x, y = values(*batch, rows, inner), values(*batch, inner, columns, seed=1)
    made = call(
        "matmul", transpose_x=left, transpose_y=right,
        x=x.transpose(-1, -2) if left else x, y=y.transpose(-1, -2) if right else y,
    )  # fmt: skip
    near(made, torch.from_numpy(np.matmul(x.numpy(), y.numpy())))


@some
@given(shape=shapes(1), data=draw.data())
def test_what_moves_values_along_an_axis(shape, data):
    x, rank = values(*shape), len(shape)
    axis = data.draw(draw.integers(-rank, rank - 1))
    near(call("softmax", x=x, axis=axis), functional.softmax(x, axis))
    assert torch.equal(call("concat", values=[x, -x], axis=axis), torch.cat([x, -x], axis))
    new = data.draw(draw.integers(-rank - 1, rank))
    assert torch.equal(call("stack", values=[x, -x], axis=new), torch.stack([x, -x], new))
    cut = data.draw(draw.integers(0, shape[axis]))
    halves = call("split", x=x, split_sizes=[cut, shape[axis] - cut], axis=axis)
    theirs = np.split(x.numpy(), [cut], axis)
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(halves, theirs, strict=True))
    places = data.draw(draw.lists(draw.integers(0, shape[axis] - 1), min_size=1, max_size=4))
    taken = call("gather", x=x, indices=places, axis=axis)
    np.testing.assert_array_equal(taken.numpy(), np.take(x.numpy(), places, axis))
    order = data.draw(draw.permutations(range(rank)))
    moved = call("transpose", x=x, perm=list(order))
    np.testing.assert_array_equal(moved.numpy(), np.transpose(x.numpy(), order))
    reps = [data.draw(SMALL) for _ in shape]
    np.testing.assert_array_equal(call("tile", x=x, reps=reps).numpy(), np.tile(x.numpy(), reps))


@some
@given(shape=shapes(1, 3), data=draw.data())
def test_sides_of_one_come_and_go(shape, data):
    x, rank = values(*shape), len(shape)
    axes = sorted(data.draw(draw.sets(draw.integers(0, rank), min_size=1, max_size=2)))
    assume(all(axis < rank + len(axes) for axis in axes))
    wide = call("expand_dims", x=x, axes=axes)
    np.testing.assert_array_equal(wide.numpy(), np.expand_dims(x.numpy(), axes))
    assert torch.equal(call("squeeze", x=wide, axes=axes), x)
    flat = call("reshape", x=wide, shape=[-1])
    assert torch.equal(flat, x.reshape(-1))


@some
@given(heads=SMALL, rows=SMALL, keys=SMALL, width=SMALL, wide=SMALL, mask=draw.sampled_from("nbf"))
def test_attention(heads, rows, keys, width, wide, mask):
    query, key = values(1, heads, rows, width), values(1, heads, keys, width, seed=1)
    value = values(1, heads, keys, wide, seed=2)
    shown = values(rows, keys, seed=3)
    shown[:, 0] = 1.0
    given_mask = {"n": None, "b": shown > 0, "f": shown}[mask]
    made = call(
        "scaled_dot_product_attention", query=query, key=key, value=value, attn_mask=given_mask
    )
    near(made, functional.scaled_dot_product_attention(query, key, value, given_mask))


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("conv", {"pad_type": "around"}, "padding 'around'"),
        ("gelu", {"mode": "QUICK"}, "GELU of mode 'QUICK'"),
        ("avg_pool", {"ceil_mode": True}, "ceil_mode"),
        ("gather", {"indices": [0], "batch_dims": 1}, "batch_dims"),
        ("pad", {"pad": [0, 0], "mode": "wrap"}, "padding 'wrap'"),
        ("slice_by_index", {"begin": [3], "end": [0], "stride": [-1]}, r"steps of \[-1\]"),
    ],
)
def test_an_attribute_that_is_not_known_is_named_with_its_operation(kind, arguments, words):
    whole = {"x": values(1, 1, 4, 4), "weight": values(1, 1, 1, 1), "kernel_sizes": [1, 1]}
    with pytest.raises(EngineError, match=rf"operation 'r' \({kind}\): .*{words}"):
        call(kind, **{**whole, **arguments})
