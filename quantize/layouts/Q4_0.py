"""Q4_0: 32 values as 4-bit steps of one float16 scale."""

from mllm_export.quantize.codes import nibbles_of_32
from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(
    name="Q4_0",
    ggml_type=2,
    block_values=32,
    block_bytes=18,
    fallback="F16",
    levels=16,
    write=nibbles_of_32(2),
)
