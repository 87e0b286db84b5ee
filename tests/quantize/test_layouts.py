"""Stored rows: size, bounds, agreement with gguf-py, and what is refused."""

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mllm_export.errors import LayoutError
from mllm_export.quantize import ggml
from mllm_export.quantize.layout import LAYOUTS, stored_bytes

QUANTIZED = [name for name in LAYOUTS.names() if name.startswith(("Q", "IQ"))]
STEPS = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 127}
"""Steps from zero to the largest value of a block, in the layouts with one scale a block."""


def _not_tiny(value):
    return value if abs(value) > 2.0**-100 else 0.0


values = st.floats(-100, 100, width=32).map(_not_tiny)
"""gguf-py divides by the scale, which overflows below 2^-120."""


def rows_of(name, elements=values):
    cols = LAYOUTS[name].block_values
    return hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(cols)), elements=elements)


def gguf_type(name):
    return gguf.GGMLQuantizationType[name]


@pytest.mark.parametrize("name", LAYOUTS.names())
def test_type_number_and_block_are_ggmls_and_gguf_pys(name):
    layout = LAYOUTS[name]
    assert layout.name == name
    assert ggml.type_name(layout.ggml_type).upper() == name
    assert ggml.block_of(layout.ggml_type) == (layout.block_values, layout.block_bytes)
    assert gguf_type(name) == layout.ggml_type
    assert gguf.GGML_QUANT_SIZES[gguf_type(name)] == (layout.block_values, layout.block_bytes)


@pytest.mark.parametrize("name", LAYOUTS.names())
def test_packed_size_is_the_predicted_one(name):
    rows = np.random.default_rng(0).standard_normal((7, 512), dtype=np.float32)
    packed = LAYOUTS[name].pack(rows)
    assert packed.dtype == np.uint8
    assert packed.nbytes == stored_bytes(name, rows.shape)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_bytes_equal_gguf_pys(name, data):
    rows = data.draw(rows_of(name))
    packed = LAYOUTS[name].pack(rows)
    expected = gguf.quantize(rows, gguf_type(name))
    if name.startswith(("Q4", "Q5")):
        # A block of zeros: numpy's 0 / -8 is minus zero, and gguf-py stores its sign.
        assert np.array_equal(
            LAYOUTS[name].unpack(packed), gguf.dequantize(expected, gguf_type(name))
        )
    else:
        assert packed.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", LAYOUTS.names())
def test_unpacked_values_equal_gguf_pys(name):
    rows = np.random.default_rng(1).standard_normal((64, 512), dtype=np.float32)
    packed = LAYOUTS[name].pack(rows)
    assert np.array_equal(LAYOUTS[name].unpack(packed), gguf.dequantize(packed, gguf_type(name)))


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_error_stays_within_half_a_step(name, data):
    rows = data.draw(rows_of(name, st.floats(-100, 100, width=16, allow_subnormal=False)))
    layout = LAYOUTS[name]
    step = np.abs(rows).max(axis=1, keepdims=True) / STEPS[name]
    # The end that has no step of its own clips by a whole one; a float16 scale rounds by 2^-11,
    # and below 2^-14 by half of its smallest step, both over all the steps of the block.
    clipped = 1.0 if name != "Q8_0" else 0.5
    bound = step * (clipped + STEPS[name] * 2.0**-11) + STEPS[name] * 2.0**-25
    assert (np.abs(layout.unpack(layout.pack(rows)) - rows) <= bound * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_packing_what_was_unpacked_changes_nothing(name, data):
    layout = LAYOUTS[name]
    once = layout.unpack(layout.pack(data.draw(rows_of(name))))
    assert np.array_equal(layout.unpack(layout.pack(once)), once)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quality_grows_with_bits(name):
    rows = np.random.default_rng(2).standard_normal((64, 1024), dtype=np.float32)
    error = LAYOUTS[name].unpack(LAYOUTS[name].pack(rows)) - rows
    sqnr_db = 10 * np.log10((rows**2).mean() / (error**2).mean())
    bits = int(name.removeprefix("I")[1])
    assert 6.02 * bits - 6 < sqnr_db < 6.02 * bits + 1


@pytest.mark.parametrize("name", QUANTIZED)
def test_importance_moves_the_error_to_columns_that_cost_little(name):
    generator = np.random.default_rng(5)
    rows = generator.standard_normal((64, 512), dtype=np.float32)
    costs = generator.lognormal(0, 2, 512).astype(np.float32)

    def cost(packed):
        return float((costs * (LAYOUTS[name].unpack(packed) - rows) ** 2).mean())

    plain, weighted = cost(LAYOUTS[name].pack(rows)), cost(LAYOUTS[name].pack(rows, costs))
    # Q8_0 has one scale that its largest value fixes; ggml ignores importance there.
    assert weighted == plain if name == "Q8_0" else weighted < 0.95 * plain


@pytest.mark.parametrize("bad", [np.ones(511), np.full(512, np.nan)])
def test_importance_of_other_columns_or_without_value_is_refused(bad):
    with pytest.raises(LayoutError, match="one finite number for each column"):
        LAYOUTS["Q4_K"].pack(np.zeros((2, 512), np.float32), bad.astype(np.float32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_pack_refuses_a_ragged_row(name):
    block = LAYOUTS[name].block_values
    with pytest.raises(LayoutError, match=f"a row of {block + 1} values is not whole blocks"):
        LAYOUTS[name].pack(np.zeros((2, block + 1), np.float32))
    with pytest.raises(LayoutError, match="stored row of 17 bytes"):
        LAYOUTS[name].unpack(np.zeros((2, 17), np.uint8))


@pytest.mark.parametrize("name", LAYOUTS.names())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pack_refuses_values_that_are_not_finite(name, value):
    rows = np.ones((3, 256), np.float32)
    rows[2, 100] = value
    with pytest.raises(LayoutError, match="NaN or infinite"):
        LAYOUTS[name].pack(rows)


def test_float16_refuses_what_it_would_make_infinite():
    with pytest.raises(LayoutError, match="f16 cannot hold a value as large as 70000"):
        LAYOUTS["F16"].pack(np.full((1, 4), 70000, np.float32))
    assert LAYOUTS["BF16"].pack(np.full((1, 4), 70000, np.float32)).nbytes == 8


@pytest.mark.parametrize("name", LAYOUTS.names())
def test_threads_and_slabs_give_the_same_bytes(name, monkeypatch):
    rows = np.random.default_rng(3).standard_normal((37, 512), dtype=np.float32)
    for costs in (None, np.random.default_rng(4).random(512, dtype=np.float32)):
        monkeypatch.setattr(ggml, "_MIN_CHUNK_VALUES", 512)
        threaded = LAYOUTS[name].pack(rows, costs)
        monkeypatch.setattr(ggml, "_MIN_CHUNK_VALUES", 1 << 30)
        slabs = [LAYOUTS[name].pack(rows[i : i + 5], costs) for i in range(0, 37, 5)]
        assert np.array_equal(threaded, np.concatenate(slabs))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", LAYOUTS.names())
def test_rows_of_16_bits_are_stored_as_their_float32(name, dtype, monkeypatch):
    monkeypatch.setattr(ggml, "_MIN_CHUNK_VALUES", 512)
    rows = np.random.default_rng(6).standard_normal((12, 512), dtype=np.float32).astype(dtype)
    expected = LAYOUTS[name].pack(rows.astype(np.float32))
    assert np.array_equal(LAYOUTS[name].pack(rows), expected)
    assert np.array_equal(
        LAYOUTS[name].pack(rows[::-2, :256]),
        LAYOUTS[name].pack(rows[::-2, :256].astype(np.float32)),
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_every_value_of_16_bits_becomes_its_float32(dtype):
    values = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(dtype)
    finite = values[np.isfinite(values.astype(np.float32))].reshape(1, -1)
    stored = LAYOUTS["F32"].pack(finite).view(np.float32)
    assert np.array_equal(stored.view(np.uint32), finite.astype(np.float32).view(np.uint32))
    with pytest.raises(LayoutError, match="f32 cannot hold NaN or infinite"):
        LAYOUTS["F32"].pack(values.reshape(1, -1))


def test_rows_need_not_be_contiguous():
    rows = np.random.default_rng(4).standard_normal((8, 64), dtype=np.float32)
    layout = LAYOUTS["Q8_0"]
    assert np.array_equal(layout.pack(rows[::2, :32]), layout.pack(rows[::2, :32].copy()))


def test_an_unknown_layout_is_answered_with_near_names():
    with pytest.raises(LayoutError, match="unknown layout 'Q4_2'; did you mean"):
        LAYOUTS["Q4_2"]


def test_fallbacks_end_in_a_layout_that_holds_every_row():
    for name in LAYOUTS.names():
        seen = [name]
        while fallback := LAYOUTS[seen[-1]].fallback:
            seen.append(fallback)
        assert LAYOUTS[seen[-1]].fits(1), seen


GRIDS = [name for name in LAYOUTS.names() if LAYOUTS[name].levels]


@pytest.mark.parametrize("name", GRIDS)
def test_codes_written_back_on_their_own_grid_give_the_same_bytes(name):
    rows = np.random.default_rng(6).standard_normal((16, 512), dtype=np.float32)
    rows[3, :256] = 0
    layout = LAYOUTS[name]
    packed = layout.pack(rows)
    grid = layout.fit(rows)
    stored = layout.store(grid, grid.codes(layout.unpack(packed)))
    kept = [at for at in range(16) if at != 3]  # a block of zeros has any codes
    assert np.array_equal(stored[kept], packed[kept])
    assert np.array_equal(layout.unpack(stored), layout.unpack(packed))


@pytest.mark.parametrize("name", GRIDS)
def test_any_codes_are_read_back_as_the_grid_says(name):
    generator = np.random.default_rng(7)
    rows = generator.standard_normal((8, 512), dtype=np.float32)
    layout = LAYOUTS[name]
    grid = layout.fit(rows, generator.random(512, dtype=np.float32))
    codes = generator.integers(0, layout.levels, rows.shape, dtype=np.uint8)
    expected = gguf.dequantize(layout.store(grid, codes), gguf_type(name))
    assert np.allclose(grid.values(codes), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["F16", "IQ4_NL", "Q3_K"])
def test_layouts_without_even_steps_offer_no_grid(name):
    assert LAYOUTS[name].fit(np.ones((1, 256), np.float32)) is None
