"""F16: float16, rounded to nearest even; values beyond 65504 are refused."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(name="F16", ggml_type=1, block_values=1, block_bytes=2)
