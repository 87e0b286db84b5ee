"""Q5_0: 32 values as 5-bit steps of one float16 scale."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(name="Q5_0", ggml_type=6, block_values=32, block_bytes=22, fallback="F16")
