"""Q6_K: 256 values as 6-bit steps; sixteen 8-bit scales over one float16 scale."""

from mllm_export.quantize.codes import six_bits_of_256
from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(
    name="Q6_K",
    ggml_type=14,
    block_values=256,
    block_bytes=210,
    fallback="Q8_0",
    levels=64,
    write=six_bits_of_256,
)
