"""What a stored tensor lost is a figure, whatever the file holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mllm_export.device_tests.checks.weights import loss_of
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.stored_tower import OnnxFloat, OnnxInt8


def original(values: np.ndarray) -> Original:
    return Original(source="x", shape=values.shape, read=lambda: values)


ONES = np.ones((4, 32), np.float32)
FURTHEST = np.finfo(np.float32).max


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1.7e38, -3e38])
@pytest.mark.parametrize("fills", [False, True])
def test_a_value_out_of_all_bounds_is_lost_in_figures(value: float, fills: bool) -> None:
    """1.7e38 is 0.5 with the upper bit of its exponent flipped; float32 cannot hold its square."""
    made = ONES.copy()
    made[slice(None) if fills else 2, 3] = value
    found = loss_of(OnnxFloat(shape=made.shape, data=made), original(ONES))
    assert found.bad == (0 if math.isfinite(value) else 4 if fills else 1)
    assert 1e30 < found.largest_error <= FURTHEST
    assert found.sqnr_db is not None
    assert math.isfinite(found.sqnr_db)


def test_a_scale_that_is_nan_is_as_far_off_as_can_be() -> None:
    stored = OnnxInt8(
        shape=ONES.shape,
        data=np.ones(ONES.shape, np.int8),
        scale=np.where(np.arange(32) == 5, np.float32(np.nan), np.float32(1)),
        zero_point=np.zeros(32, np.int8),
    )
    found = loss_of(stored, original(ONES))
    assert (found.bad, found.largest_error) == (4, FURTHEST)


@pytest.mark.parametrize("value", [np.inf, 3e38])
def test_a_source_out_of_all_bounds_is_compared_in_figures(value: float) -> None:
    source = ONES.copy()
    source[1, 1] = value
    found = loss_of(OnnxFloat(shape=ONES.shape, data=ONES), original(source))
    assert found.sqnr_db is not None
    assert math.isfinite(found.sqnr_db)
