"""BF16: bfloat16, rounded to nearest even."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(name="BF16", ggml_type=30, block_values=1, block_bytes=2)
