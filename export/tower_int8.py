"""Products of the tower in 8-bit weights and activations, by ONNX Runtime through optimum.

Weights are quantized per output column; activations per tensor, either while the graph runs
(dynamic) or with ranges from calibration pictures (static). Only products with a stored weight
are quantized: products of two activations (attention) and convolutions stay float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_export.export.tower_integer_products import fuse_integer_products

if TYPE_CHECKING:
    from onnx import ModelProto

PRESETS = ("avx2", "avx512_vnni", "arm64")
"""Methods of optimum's AutoQuantizationConfig.

avx2 stores weights as u8, the others as s8. On x86 without VNNI, ONNX Runtime multiplies u8
activations by s8 weights with VPMADDUBSW, whose 16-bit sums saturate; u8 by u8 is widened to
16 bits first and summed in 32, so avx2 is exact on every x86. VNNI and ARM sum s8 exactly.
Measured on a small tower, native with VNNI against an emulated Haswell: avx2 equal to the bit,
arm64 apart by a worst-token cosine of 0.998.
Source: onnxruntime/core/mlas/lib/platform.cpp and the quantization page of its documentation.
"""


def quantize_dynamic(model: ModelProto, wanted: list[str], preset: str, folder: Path) -> ModelProto:
    """Integer products whose activations get their range while the graph runs."""
    import onnx
    from optimum.onnxruntime import ORTQuantizer
    from transformers import PretrainedConfig

    config = _preset(preset, is_static=False, wanted=wanted)
    with tempfile.TemporaryDirectory(prefix=".int8.", dir=folder) as name:
        path = Path(name) / "piece.onnx"
        onnx.save(model, path)
        # A config of its own, else optimum looks for one beside the file and warns.
        quantizer = ORTQuantizer(path, config=PretrainedConfig())
        quantizer.quantize(config, save_dir=path.parent, file_suffix="int8")
        return onnx.load(path.with_name(f"{path.stem}_int8.onnx"))


def quantize_static(
    model: ModelProto,
    wanted: list[str],
    preset: str,
    ranges: Mapping[str, tuple[float, float]],
) -> ModelProto:
    """Integer products whose activations have a range from calibration.

    ONNX Runtime's quantizer puts pairs of QuantizeLinear and DequantizeLinear around each
    product; they are then joined with it, see `fuse_integer_products`. Only inputs are
    quantized: outputs go on in float32, for the residual stream needs more than 8 bits.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    config = _preset(preset, is_static=True, wanted=wanted)
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        model=model,
        per_channel=config.per_channel,
        reduce_range=config.reduce_range,
        weight_qType=config.weights_dtype,
        activation_qType=config.activations_dtype,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=wanted,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={
            "ActivationSymmetric": config.activations_symmetric,
            "WeightSymmetric": config.weights_symmetric,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    quantizer.quantize_model()
    fuse_integer_products(quantizer.model.model)
    quantizer.model.topological_sort()
    made: ModelProto = quantizer.model.model
    return made


def quantized_nodes(model: ModelProto) -> tuple[str, ...]:
    """Names of the integer products in a quantized graph, as ONNX Runtime names them."""
    kinds = ("MatMulInteger", "MatMulIntegerToFloat")
    return tuple(node.name for node in model.graph.node if node.op_type in kinds)


def _preset(preset: str, *, is_static: bool, wanted: list[str]) -> Any:
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    return getattr(AutoQuantizationConfig, preset)(
        is_static=is_static,
        per_channel=True,
        nodes_to_quantize=wanted,
        operators_to_quantize=["MatMul"],
    )
