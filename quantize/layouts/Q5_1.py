"""Q5_1: 32 values as 5-bit steps of a float16 scale above a float16 minimum."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(name="Q5_1", ggml_type=7, block_values=32, block_bytes=24, fallback="F16")
