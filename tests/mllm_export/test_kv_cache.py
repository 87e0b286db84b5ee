"""Sizes of a KV cache against ggml's own, and heads that its blocks do not divide."""

import pytest

from mllm_export.errors import PlanError
from mllm_export.kv_cache import KV_TYPES, kv_bytes, require_fits
from mllm_export.quantize.ggml import block_of

GGML = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}
"""Source: ggml.h, enum ggml_type."""


@pytest.mark.parametrize("kind", KV_TYPES)
def test_sizes_are_ggmls(kind):
    block, size_bytes = block_of(GGML[kind])
    assert kv_bytes(kind, 256 * 7) == 256 * 7 // block * size_bytes


def test_heads_that_blocks_do_not_divide_are_refused():
    require_fits("f16", 80)
    require_fits("q8_0", 64)
    with pytest.raises(PlanError, match="blocks of 32 values, heads of this model have 80"):
        require_fits("q4_0", 80)
