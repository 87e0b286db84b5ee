"""Q4_1: 32 values as 4-bit steps of a float16 scale above a float16 minimum."""

from mllm_export.quantize.codes import nibbles_of_32
from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(
    name="Q4_1",
    ggml_type=3,
    block_values=32,
    block_bytes=20,
    fallback="F16",
    levels=16,
    write=nibbles_of_32(4),
)
