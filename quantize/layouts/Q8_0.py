"""Q8_0: 32 values as 8-bit steps of one float16 scale."""

from mllm_export.quantize.codes import bytes_of_32
from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(
    name="Q8_0",
    ggml_type=8,
    block_values=32,
    block_bytes=34,
    fallback="F16",
    levels=255,
    write=bytes_of_32,
)
