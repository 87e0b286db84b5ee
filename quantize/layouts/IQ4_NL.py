"""IQ4_NL: 32 values as 4-bit places in a table of uneven steps, times one float16 scale."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(name="IQ4_NL", ggml_type=20, block_values=32, block_bytes=18, fallback="F16")
