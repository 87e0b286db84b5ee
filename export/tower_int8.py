"""Products of the tower in 8-bit weights and activations, by ONNX Runtime's quantizers.

Weights are quantized per output column; activations per tensor, either while the graph runs
(dynamic) or with ranges from calibration pictures (static). Only products with a stored weight
are quantized: products of two activations (attention) and convolutions stay float.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_export.export.graph_weights import give_values, without_values
from mllm_export.export.parts import Array
from mllm_export.export.tower_integer_products import fuse_integer_products

if TYPE_CHECKING:
    from onnx import ModelProto

PRESETS = {"avx2": "QUInt8", "avx512_vnni": "QInt8", "arm64": "QInt8"}
"""Type of the weights by instruction set, as methods of optimum's AutoQuantizationConfig have it.

Their activations are u8 with a zero point of their own, their weights symmetric, by column.
optimum itself is not loaded: torch and transformers, which it brings, cost 6 s and 0.6 GiB.
avx2 stores weights as u8, the others as s8. On x86 without VNNI, ONNX Runtime multiplies u8
activations by s8 weights with VPMADDUBSW, whose 16-bit sums saturate; u8 by u8 is widened to
16 bits first and summed in 32, so avx2 is exact on every x86. VNNI and ARM sum s8 exactly.
Measured on a small tower, native with VNNI against an emulated Haswell: avx2 equal to the bit,
arm64 apart by a worst-token cosine of 0.998.
Source: onnxruntime/core/mlas/lib/platform.cpp and the quantization page of its documentation.
"""

_ROWS = 256
"""Of a weight, in float32 at a time: they stay in the cache."""


def quantize_dynamic(model: ModelProto, wanted: list[str], preset: str) -> ModelProto:
    """Integer products whose activations get their range while the graph runs."""
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode

    # It saves and reads the model twice to infer shapes, which stand without a value.
    light, values = without_values(model)
    quantizer = ONNXQuantizer(
        light,
        per_channel=True,
        reduce_range=False,
        mode=QuantizationMode.IntegerOps,
        static=False,
        weight_qType=_weight_type(preset),
        activation_qType=_activation_type(),
        tensors_range=None,
        nodes_to_quantize=wanted,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    # Its own takes a column at a time, in Python.
    quantizer.quantize_weight_per_channel_impl = partial(_store_columns, quantizer, values)
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made: ModelProto = quantizer.model.model
    give_values(made, values)
    return made


def _store_columns(
    quantizer: Any, values: Mapping[str, Array], name: str, kind: int, *_: object
) -> tuple[str, str, str]:
    """In the place of ONNXQuantizer.quantize_weight_per_channel_impl; same names, same bytes."""
    from onnx import TensorProto, numpy_helper

    codes, zeros, scales = quantize_columns(values[name], signed=kind == TensorProto.INT8)
    stored = {f"{name}_scale": scales, f"{name}_zero_point": zeros, f"{name}_quantized": codes}
    quantizer.model.initializer_extend([numpy_helper.from_array(v, n) for n, v in stored.items()])
    scale_name, zero_name, codes_name = stored
    return codes_name, zero_name, scale_name


def quantize_columns(values: Array, *, signed: bool) -> tuple[Array, Array, Array]:
    """Symmetric 8-bit codes, with zero point and scale of each column.

    Shapes: f32[K, N] -> i8 or u8 [K, N], [N]; f32[N].
    Source: onnxruntime.quantization, quantize_data; equal bit for bit.
    """
    dtype, steps, middle = (np.int8, 254, 0) if signed else (np.uint8, 255, 128)
    limits = np.iinfo(dtype)
    tops = np.maximum(values.max(axis=0), -values.min(axis=0)).astype(np.float64)
    wide = 2 * tops / steps
    empty = wide < np.finfo(np.float32).tiny
    scales = np.where(empty, 1.0, wide).astype(np.float32)
    zeros = np.where(empty, 0, middle).astype(dtype)
    codes = np.empty(values.shape, dtype)
    for first in range(0, len(values), _ROWS):
        rows = values[first : first + _ROWS] / scales
        np.rint(rows, out=rows)
        rows += zeros
        codes[first : first + _ROWS] = np.clip(rows, limits.min, limits.max, out=rows)
    return codes, zeros, scales


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

    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        model=model,
        per_channel=True,
        reduce_range=False,
        weight_qType=_weight_type(preset),
        activation_qType=_activation_type(),
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=wanted,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
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


def _weight_type(preset: str) -> Any:
    from onnxruntime.quantization import QuantType

    return QuantType[PRESETS[preset]]


def _activation_type() -> Any:
    from onnxruntime.quantization import QuantType

    return QuantType.QUInt8
