"""Q2_K: 256 values as 2-bit steps; sixteen 4-bit scales and minima over two float16 ones."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(name="Q2_K", ggml_type=10, block_values=256, block_bytes=84, fallback="Q4_0")
