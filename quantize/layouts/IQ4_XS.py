"""IQ4_XS: 256 values as 4-bit places in IQ4_NL's table; eight 6-bit scales over one float16."""

from mllm_export.quantize.layout import GgmlLayout

LAYOUT = GgmlLayout(
    name="IQ4_XS", ggml_type=23, block_values=256, block_bytes=136, fallback="IQ4_NL"
)
