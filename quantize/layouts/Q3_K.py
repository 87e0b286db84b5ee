"""Q3_K: 256 values as 3-bit steps; sixteen 6-bit scales over one float16 scale."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(name="Q3_K", ggml_type=11, block_values=256, block_bytes=110, fallback="Q4_0")
