"""Tensors that stay float32 whatever a recipe says, because llama.cpp computes with them so."""

from __future__ import annotations

from fnmatch import fnmatchcase

KEPT = (
    "*_norm.weight",
    "*.ssm_conv1d.weight",
    "*.shortconv.conv.weight",
    "*.ffn_gate_inp.weight",
    "position_embd.weight",
    "token_types.weight",
)
"""Patterns of GGUF names, of those that decoders here may have.

Source: llama.cpp, src/llama-quant.cpp, tensor_allows_quantization, and conversion/base.py,
ModelBase.prepare_tensors.
"""


def is_kept(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp wants the tensor in float32: vectors, what is no weight, and `KEPT`."""
    if len(shape) < 2 or not name.endswith(".weight"):
        return True
    return any(fnmatchcase(name, pattern) for pattern in KEPT)
