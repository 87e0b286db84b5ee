"""Ranges inside the tower: how far one may be off, either way."""

import pytest

from mllm_export.device_tests.probes import LayerRange


@pytest.mark.parametrize(
    ("original", "export", "off"), [(4.0, 4.0, 1.0), (4.0, 8.0, 2.0), (4.0, 2.0, 2.0)]
)
def test_a_range_may_be_off_either_way(original: float, export: float, off: float) -> None:
    assert LayerRange(name="layer", original=original, export=export).off_by == off


def test_a_layer_that_vanished_is_far_off() -> None:
    assert LayerRange(name="layer", original=4.0, export=0.0).off_by > 1e6


def test_a_range_that_cannot_be_seen_says_nothing() -> None:
    assert LayerRange(name="layer", original=4.0).off_by == 1.0
