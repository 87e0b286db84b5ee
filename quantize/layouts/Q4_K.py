"""Q4_K: 256 values as 4-bit steps; eight 6-bit scales and minima over two float16 ones."""

from mllm_export.quantize.codes import nibbles_of_256
from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(
    name="Q4_K",
    ggml_type=12,
    block_values=256,
    block_bytes=144,
    fallback="Q5_0",
    levels=16,
    write=nibbles_of_256,
)
