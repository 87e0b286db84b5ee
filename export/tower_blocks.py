"""Weights of matrix products in 4-bit blocks, by ONNX Runtime's own quantizer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mllm_export.quantize.tower_scheme import TowerScheme

if TYPE_CHECKING:
    from onnx import ModelProto


def quantize_blocks(model: ModelProto, wanted: list[str], scheme: TowerScheme) -> ModelProto:
    """Turn the named products into MatMulNBits; activations stay float."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # It reports on every node it passes by.
    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)
    others = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.name not in wanted]
    quantizer = MatMulNBitsQuantizer(
        model,
        block_size=scheme.block,
        is_symmetric=scheme.symmetric,
        bits=scheme.bits,
        nodes_to_exclude=others,  # its nodes_to_include adds to all products, and limits nothing
    )
    quantizer.process()
    made: ModelProto = quantizer.model.model
    _require_domain(made)
    return made


def _require_domain(model: ModelProto) -> None:
    if all(one.domain != "com.microsoft" for one in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)
