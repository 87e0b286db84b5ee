"""A picture of several preprocessings as one array, there and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_export.errors import EngineError
from mllm_export.pixels import join_pixels, pixels_shape, split_pixels, tiles_of


def parts_of(sides, tiles):
    draw = np.random.default_rng(0)
    return [draw.standard_normal((tiles, 3, side, side)).astype(np.float32) for side in sides]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 3))
def test_what_was_joined_comes_apart_bit_for_bit(sides, tiles):
    parts = parts_of(sides, tiles)
    shapes = {f"input_{at}": (1, 3, side, side) for at, side in enumerate(sides)}
    joined = join_pixels(parts)
    assert joined.shape == (tiles, *pixels_shape(list(shapes.values())))
    found = split_pixels(joined, shapes)
    assert list(found) == list(shapes)
    for part, one in zip(parts, found.values(), strict=True):
        np.testing.assert_array_equal(part, one)
    fed = tiles_of(joined, shapes)
    assert [one["input_0"].shape for one in fed] == [(1, 3, sides[0], sides[0])] * tiles
    np.testing.assert_array_equal(np.concatenate([one["input_0"] for one in fed]), parts[0])


def test_one_input_is_the_array_it_always_was():
    (part,) = parts_of([4], 2)
    assert join_pixels([part]) is part


def test_inputs_of_one_size_lie_channel_by_channel():
    assert join_pixels(parts_of([4, 4], 2)).shape == (2, 6, 4, 4)
    assert join_pixels(parts_of([4, 5], 2)).shape == (2, 3 * (16 + 25))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 3, 4, 4), np.float32), r"float32\[1, 3, 4, 4\], needed: float32\[N, 6, 4, 4"),
        (np.zeros((1, 6, 4, 4)), r"float64\[1, 6, 4, 4\], needed: float32"),
        (np.zeros((0, 6, 4, 4), np.float32), r"float32\[0, 6, 4, 4\], needed"),
    ],
)
def test_another_shape_or_type_is_refused(pixels, message):
    with pytest.raises(EngineError, match=message):
        split_pixels(pixels, {"a": (1, 3, 4, 4), "b": (1, 3, 4, 4)})
