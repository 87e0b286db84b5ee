"""Every operation of the evaluator against torch, through a program that coremltools saved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from mllm_export.export.mil_call import Call
from mllm_export.export.mil_evaluator import operators
from mllm_export.export.mil_program import Operation, Result
from tests.export.mil.mil_run import run_on, run_saved, saved


def values(*shape, seed=0, low=None):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made if low is None else made.abs() + low


def w(*shape, seed=1):
    return values(*shape, seed=seed).numpy()


def conv(groups=1, **settings):
    def ours(mb, x):
        return mb.conv(x=x, weight=w(8, 4 // groups, 3, 3), bias=w(8), groups=groups, **settings)

    return ours


def theirs_conv(stride=1, padding=0, dilation=1, groups=1):
    weight = torch.tensor(w(8, 4 // groups, 3, 3))
    return lambda x: functional.conv2d(
        x, weight, torch.tensor(w(8)), stride, padding, dilation, groups
    )


def pool(kind, **settings):
    def ours(mb, x):
        return getattr(mb, kind)(x=x, kernel_sizes=[3, 3], **settings)

    return ours


def norm(mb, x):
    return mb.layer_norm(x=x, axes=[-1], gamma=w(6), beta=w(6, seed=2), epsilon=1e-5)


def heads(values, width=3):
    return values.reshape(1, -1, 2, width).transpose(1, 2)


def attention(mb, x):
    split = mb.transpose(x=mb.reshape(x=x, shape=[1, 5, 2, 3]), perm=[0, 2, 1, 3])
    mixed = mb.scaled_dot_product_attention(query=split, key=mb.mul(x=split, y=2.0), value=split)
    return mb.reshape(x=mixed, shape=[10, 3])


def their_attention(x):
    split = heads(x)
    return functional.scaled_dot_product_attention(split, 2 * split, split).reshape(10, 3)


ROWS, MAP = (5, 6), (1, 4, 9, 8)
CASES = {
    "add": (ROWS, lambda mb, x: mb.add(x=x, y=w(6)), lambda x: x + torch.tensor(w(6))),
    "sub": (ROWS, lambda mb, x: mb.sub(x=x, y=w(5, 1)), lambda x: x - torch.tensor(w(5, 1))),
    "mul": (ROWS, lambda mb, x: mb.mul(x=x, y=1.5), lambda x: x * 1.5),
    "real_div": (ROWS, lambda mb, x: mb.real_div(x=2.0, y=x), lambda x: 2 / x),
    "maximum": (ROWS, lambda mb, x: mb.maximum(x=x, y=0.1), lambda x: x.clamp(min=0.1)),
    "minimum": (ROWS, lambda mb, x: mb.minimum(x=x, y=0.1), lambda x: x.clamp(max=0.1)),
    "pow": (ROWS, lambda mb, x: mb.pow(x=x, y=2.0), lambda x: x**2),
    "abs": (ROWS, lambda mb, x: mb.abs(x=x), torch.abs),
    "sqrt": (ROWS, lambda mb, x: mb.sqrt(x=mb.abs(x=x)), lambda x: x.abs().sqrt()),
    "square": (ROWS, lambda mb, x: mb.square(x=x), torch.square),
    "exp": (ROWS, lambda mb, x: mb.exp(x=x), torch.exp),
    "erf": (ROWS, lambda mb, x: mb.erf(x=x), torch.erf),
    "rsqrt": (
        ROWS,
        lambda mb, x: mb.rsqrt(x=mb.abs(x=x), epsilon=0.5),
        lambda x: (x.abs() + 0.5).rsqrt(),
    ),
    "inverse": (
        ROWS,
        lambda mb, x: mb.inverse(x=mb.abs(x=x), epsilon=0.5),
        lambda x: 1 / (x.abs() + 0.5),
    ),
    "clip": (ROWS, lambda mb, x: mb.clip(x=x, alpha=-0.3, beta=0.4), lambda x: x.clamp(-0.3, 0.4)),
    "cast": (
        ROWS,
        lambda mb, x: mb.cast(x=mb.cast(x=mb.mul(x=x, y=3.0), dtype="int32"), dtype="fp32"),
        lambda x: (3 * x).trunc(),
    ),
    "cast to 16 bits, around the end": (
        ROWS,
        lambda mb, x: mb.cast(
            x=mb.cast(x=mb.cast(x=mb.mul(x=x, y=4e4), dtype="int32"), dtype="int16"), dtype="fp32"
        ),
        lambda x: (4e4 * x).to(torch.int32).to(torch.int16).float(),
    ),
    "equal": (
        ROWS,
        lambda mb, x: mb.cast(x=mb.equal(x=x, y=mb.relu(x=x)), dtype="fp32"),
        lambda x: (x == x.relu()).float(),
    ),
    "greater": (
        ROWS,
        lambda mb, x: mb.cast(x=mb.greater(x=x, y=0.1), dtype="fp32"),
        lambda x: (x > 0.1).float(),
    ),
    "greater_equal": (
        ROWS,
        lambda mb, x: mb.cast(x=mb.greater_equal(x=x, y=mb.relu(x=x)), dtype="fp32"),
        lambda x: (x >= x.relu()).float(),
    ),
    "less": (
        ROWS,
        lambda mb, x: mb.cast(x=mb.less(x=x, y=0.1), dtype="fp32"),
        lambda x: (x < 0.1).float(),
    ),
    "select": (
        ROWS,
        lambda mb, x: mb.select(cond=mb.greater(x=x, y=0.1), a=x, b=mb.square(x=x)),
        lambda x: torch.where(x > 0.1, x, x.square()),
    ),
    "reduce_argmax": (
        ROWS,
        lambda mb, x: mb.cast(x=mb.reduce_argmax(x=x, axis=-1), dtype="fp32"),
        lambda x: x.argmax(-1).float(),
    ),
    "reduce_argmax, the first of equals": (
        ROWS,
        lambda mb, x: mb.cast(
            x=mb.reduce_argmax(
                x=mb.cast(x=mb.greater(x=x, y=0.0), dtype="int32"), axis=-1, keep_dims=True
            ),
            dtype="fp32",
        ),
        lambda x: (x > 0).int().argmax(-1, keepdim=True).float(),
    ),
    "gelu exact": (ROWS, lambda mb, x: mb.gelu(x=x, mode="EXACT"), functional.gelu),
    "gelu tanh": (
        ROWS,
        lambda mb, x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: functional.gelu(x, approximate="tanh"),
    ),
    "gelu sigmoid": (
        ROWS,
        lambda mb, x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        lambda x: x * torch.sigmoid(1.702 * x),
    ),
    "leaky_relu": (
        ROWS,
        lambda mb, x: mb.leaky_relu(x=x, alpha=0.2),
        lambda x: functional.leaky_relu(x, 0.2),
    ),
    "relu": (ROWS, lambda mb, x: mb.relu(x=x), torch.relu),
    "relu6": (ROWS, lambda mb, x: mb.relu6(x=mb.mul(x=x, y=9.0)), lambda x: (9 * x).clamp(0, 6)),
    "sigmoid": (ROWS, lambda mb, x: mb.sigmoid(x=x), torch.sigmoid),
    "sigmoid_hard": (
        ROWS,
        lambda mb, x: mb.sigmoid_hard(x=mb.mul(x=x, y=4.0), alpha=1 / 6, beta=0.5),
        lambda x: functional.hardsigmoid(4 * x),
    ),
    "silu": (ROWS, lambda mb, x: mb.silu(x=x), functional.silu),
    "softmax": (ROWS, lambda mb, x: mb.softmax(x=x, axis=0), lambda x: x.softmax(0)),
    "tanh": (ROWS, lambda mb, x: mb.tanh(x=x), torch.tanh),
    "thresholded_relu": (
        ROWS,
        lambda mb, x: mb.thresholded_relu(x=x, alpha=-0.5),
        lambda x: torch.where(x >= -0.5, x, 0.0),
    ),
    "linear": (
        ROWS,
        lambda mb, x: mb.linear(x=x, weight=w(7, 6), bias=w(7)),
        lambda x: functional.linear(x, torch.tensor(w(7, 6)), torch.tensor(w(7))),
    ),
    "matmul": (
        ROWS,
        lambda mb, x: mb.matmul(x=x, y=w(5, 4), transpose_x=True),
        lambda x: x.T @ torch.tensor(w(5, 4)),
    ),
    "matmul transposed": (
        ROWS,
        lambda mb, x: mb.matmul(x=x, y=w(4, 6), transpose_y=True),
        lambda x: x @ torch.tensor(w(4, 6)).T,
    ),
    "scaled_dot_product_attention": (ROWS, attention, their_attention),
    "conv": (MAP, conv(pad_type="valid"), theirs_conv()),
    "conv strided": (
        MAP,
        conv(pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2]),
        theirs_conv(2, 1),
    ),
    "conv in groups": (MAP, conv(groups=4, pad_type="same"), theirs_conv(1, 1, groups=4)),
    "conv dilated": (
        MAP,
        conv(pad_type="custom", pad=[2, 2, 2, 2], dilations=[2, 2]),
        theirs_conv(1, 2, 2),
    ),
    "conv with one-sided border": (
        MAP,
        conv(pad_type="custom", pad=[0, 1, 2, 0]),
        lambda x: theirs_conv()(functional.pad(x, [2, 0, 0, 1])),
    ),
    "layer_norm": (
        ROWS,
        norm,
        lambda x: functional.layer_norm(x, (6,), torch.tensor(w(6)), torch.tensor(w(6, seed=2))),
    ),
    "batch_norm": (
        MAP,
        lambda mb, x: mb.batch_norm(
            x=x, mean=w(4), variance=np.abs(w(4)) + 1, gamma=w(4, seed=2), beta=w(4, seed=3)
        ),
        lambda x: functional.batch_norm(
            x,
            torch.tensor(w(4)),
            torch.tensor(np.abs(w(4)) + 1),
            torch.tensor(w(4, seed=2)),
            torch.tensor(w(4, seed=3)),
        ),
    ),
    "l2_norm": (
        MAP,
        lambda mb, x: mb.l2_norm(x=x, epsilon=1e-6),
        lambda x: x / (x.square().sum((1, 2, 3), keepdim=True) + 1e-6).sqrt(),
    ),
    "avg_pool": (
        MAP,
        pool("avg_pool", pad_type="valid", strides=[2, 2]),
        lambda x: functional.avg_pool2d(x, 3, 2),
    ),
    "avg_pool counting its border": (
        MAP,
        pool("avg_pool", pad_type="custom", pad=[1, 1, 1, 1]),
        lambda x: functional.avg_pool2d(x, 3, 1, 1),
    ),
    "avg_pool without its border": (
        MAP,
        pool(
            "avg_pool",
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=True,
        ),
        lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    "max_pool": (
        MAP,
        pool("max_pool", pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2]),
        lambda x: functional.max_pool2d(x, 3, 2, 1),
    ),
    "reduce_l2_norm": (
        ROWS,
        lambda mb, x: mb.reduce_l2_norm(x=x, axes=[1], keep_dims=True),
        lambda x: x.norm(dim=1, keepdim=True),
    ),
    "reduce_max": (ROWS, lambda mb, x: mb.reduce_max(x=x, axes=[0]), lambda x: x.amax(0)),
    "reduce_mean": (
        MAP,
        lambda mb, x: mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False),
        lambda x: x.mean((2, 3)),
    ),
    "reduce_sum": (ROWS, lambda mb, x: mb.reduce_sum(x=x, axes=[-1]), lambda x: x.sum(-1)),
    "concat": (
        ROWS,
        lambda mb, x: mb.concat(values=[x, w(5, 2), x], axis=1),
        lambda x: torch.cat([x, torch.tensor(w(5, 2)), x], 1),
    ),
    "stack": (
        ROWS,
        lambda mb, x: mb.stack(values=[x, w(5, 6)], axis=1),
        lambda x: torch.stack([x, torch.tensor(w(5, 6))], 1),
    ),
    "split": (
        ROWS,
        lambda mb, x: mb.sub(**dict(zip("xy", mb.split(x=x, num_splits=2, axis=1), strict=True))),
        lambda x: x[:, :3] - x[:, 3:],
    ),
    "split by sizes": (
        ROWS,
        lambda mb, x: mb.split(x=x, split_sizes=[2, 4], axis=1)[1],
        lambda x: x[:, 2:],
    ),
    "slice_by_index": (
        MAP,
        lambda mb, x: mb.slice_by_index(
            x=x,
            begin=[0, 1, 2, -5],
            end=[0, 0, 8, -1],
            stride=[1, 1, 2, 1],
            begin_mask=[True, False, False, False],
            end_mask=[True, True, False, False],
        ),
        lambda x: x[:, 1:, 2:8:2, -5:-1],
    ),
    "slice_by_index squeezed": (
        MAP,
        lambda mb, x: mb.slice_by_index(
            x=x,
            begin=[0, 2, 0, 0],
            end=[1, 3, 9, 8],
            squeeze_mask=[True, True, False, False],
        ),
        lambda x: x[0, 2],
    ),
    "slice_by_size": (
        ROWS,
        lambda mb, x: mb.slice_by_size(x=x, begin=[1, 2], size=[3, -1]),
        lambda x: x[1:4, 2:],
    ),
    "expand_dims": (
        ROWS,
        lambda mb, x: mb.expand_dims(x=x, axes=[0, 3]),
        lambda x: x[None, :, :, None],
    ),
    "squeeze": (MAP, lambda mb, x: mb.squeeze(x=x, axes=[0]), lambda x: x[0]),
    "reshape": (
        MAP,
        lambda mb, x: mb.reshape(x=x, shape=[0, 4, -1]),
        lambda x: x.reshape(1, 4, 72),
    ),
    "transpose": (
        MAP,
        lambda mb, x: mb.transpose(x=x, perm=[0, 2, 3, 1]),
        lambda x: x.permute(0, 2, 3, 1),
    ),
    "tile": (ROWS, lambda mb, x: mb.tile(x=x, reps=[2, 3]), lambda x: x.tile(2, 3)),
    "gather": (
        ROWS,
        lambda mb, x: mb.gather(x=x, indices=np.array([[4, 0], [1, 1]], np.int32), axis=0),
        lambda x: x[torch.tensor([[4, 0], [1, 1]])],
    ),
    "pad": (
        MAP,
        lambda mb, x: mb.pad(x=x, pad=[0, 0, 0, 0, 1, 2, 0, 3], constant_val=0.5),
        lambda x: functional.pad(x, [0, 3, 1, 2], value=0.5),
    ),
    "pad by reflection": (
        MAP,
        lambda mb, x: mb.pad(x=x, pad=[0, 0, 0, 0, 1, 2, 0, 3], mode="reflect"),
        lambda x: functional.pad(x, [0, 3, 1, 2], mode="reflect"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operation_is_what_torch_computes(tmp_path, name):
    shape, ours, theirs = CASES[name]
    x = values(*shape)
    made = run_saved(tmp_path, ours, x.numpy())
    expected = theirs(x).numpy()
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, rtol=2e-5, atol=2e-6)


def test_every_operation_has_a_case():
    cased = {name.split()[0].rstrip(",") for name in CASES}
    constants = {name for name in operators() if name.startswith("constexpr_")}
    assert set(operators()) - constants - {"identity"} == cased


@pytest.mark.parametrize("shape", [(5, 6), (3, 33)])
def test_float16_rounds_every_result(tmp_path, shape):
    x = values(*shape)
    evaluator = saved(tmp_path, lambda mb, x: mb.mul(x=mb.add(x=x, y=7.0), y=3.0), shape, "float16")
    expected = ((x.half() + 7.0).half() * 3.0).half().float()
    np.testing.assert_array_equal(run_on(evaluator, x.numpy()), expected.numpy())


def test_a_value_over_float16_is_infinite_there_and_finite_in_float32(tmp_path):
    x = np.full((1, 2), 300.0, np.float32)
    made = run_on(saved(tmp_path, lambda mb, x: mb.square(x=x), (1, 2), "float16"), x)
    assert np.isinf(made).all()
    assert run_saved(tmp_path, lambda mb, x: mb.square(x=x), x).max() == pytest.approx(90_000)


def test_an_unknown_operation_is_named(tmp_path):
    from mllm_export.errors import EngineError

    with pytest.raises(EngineError, match="unknown operation 'cumsum'"):
        run_saved(tmp_path, lambda mb, x: mb.cumsum(x=x, axis=0), np.ones((2, 3), np.float32))


def test_the_peak_inside_an_operation_is_told(tmp_path):
    seen = {}
    evaluator = saved(tmp_path, norm, (5, 6))
    x = values(5, 6).numpy() * 1000
    run_on(evaluator, x, lambda operation, peak: seen.__setitem__(operation.type, peak))
    assert seen["layer_norm"] == pytest.approx(float(x.var(axis=1).max()), rel=1e-4)
    assert seen["layer_norm"] > 1e5


def call(kind, **given):
    operation = Operation(
        type=kind, inputs={}, attributes={}, results=(Result(name="r", type="FLOAT16", shape=()),)
    )
    return operators()[kind](Call(operation, {name: [one] for name, one in given.items()}))


@pytest.mark.parametrize(("rows", "columns", "block"), [(4, 8, 4), (3, 6, 6), (2, 32, 8)])
@pytest.mark.parametrize("offset", [False, True])
def test_blockwise_steps_follow_the_formula(rows, columns, block, offset):
    generator = torch.Generator().manual_seed(rows)
    data = torch.randint(-8, 8, (rows, columns), generator=generator)
    scale = torch.rand(rows, columns // block, generator=generator)
    zero = torch.randint(-4, 4, scale.shape, generator=generator)
    given = {"data": data, "scale": scale, **({"offset": zero} if offset else {})}
    made = call("constexpr_blockwise_shift_scale", **given)
    for row in range(rows):
        for column in range(columns):
            less = zero[row, column // block] if offset else 0
            expected = scale[row, column // block] * (data[row, column] - less)
            assert made[row, column] == pytest.approx(float(expected))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_affine_steps_follow_the_formula(axis):
    data = torch.arange(-6, 6).reshape(3, 4)
    side = data.shape[axis]
    scale, zero = torch.rand(side), torch.arange(side)
    made = call(
        "constexpr_affine_dequantize",
        quantized_data=data,
        scale=scale,
        zero_point=zero,
        axis=torch.tensor(axis),
    )
    moved = data.movedim(axis, -1) - zero
    assert torch.equal(made, (moved * scale).movedim(-1, axis))


@pytest.mark.parametrize("group", [1, 2, 4])
def test_palettes_of_grouped_channels_follow_the_formula(group):
    indices = torch.randint(0, 16, (4, 3), generator=torch.Generator().manual_seed(group))
    palette = torch.randn(4 // group, 1, 16, 1)
    made = call("constexpr_lut_to_dense", indices=indices, lut=palette)
    expected = [[palette[r // group, 0, indices[r, c], 0] for c in range(3)] for r in range(4)]
    assert torch.equal(made, torch.tensor(expected))


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_palettes_are_read_bit_by_bit(bits):
    from coremltools.optimize import _utils

    indices = np.random.default_rng(bits).integers(0, 1 << bits, 21).astype(np.uint8)
    packed = _utils.pack_elements_into_bits(indices, bits)
    palette = torch.randn(1 << bits)
    made = call(
        "constexpr_lut_to_dense",
        indices=torch.tensor(packed.astype(np.int64)),
        lut=palette,
        shape=torch.tensor([7, 3]),
    )
    assert torch.equal(made, palette[torch.tensor(indices.astype(np.int64))].reshape(7, 3))


def test_attention_with_a_mask(tmp_path):
    mask = np.tril(np.ones((5, 5), bool))

    def masked(mb, x):
        split = mb.expand_dims(x=x, axes=[0])
        return mb.scaled_dot_product_attention(query=split, key=split, value=split, attn_mask=mask)

    x = values(5, 6)
    expected = functional.scaled_dot_product_attention(
        x[None], x[None], x[None], attn_mask=torch.tensor(mask)
    )
    made = run_saved(tmp_path, masked, x.numpy())
    assert math.isclose(float(np.abs(made - expected.numpy()).max()), 0, abs_tol=2e-6)
