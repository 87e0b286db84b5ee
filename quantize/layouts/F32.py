"""F32: the values themselves."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(name="F32", ggml_type=0, block_values=1, block_bytes=4)
