"""Q5_K: 256 values as 5-bit steps; eight 6-bit scales and minima over two float16 ones."""

from mllm_export.quantize.codes import five_bits_of_256
from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(
    name="Q5_K",
    ggml_type=13,
    block_values=256,
    block_bytes=176,
    fallback="Q5_1",
    levels=32,
    write=five_bits_of_256,
)
