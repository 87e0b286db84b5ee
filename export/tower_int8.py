"""The tower with 8-bit weights and activations, by ONNX Runtime through optimum's presets.

Weights are quantized per output column once; activations per tensor while the graph runs
(dynamic quantization), so no calibration is needed. Only products with a stored weight are
quantized: products of two activations (attention) and convolutions stay float.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_export.catalog import unknown
from mllm_export.errors import TargetError
from mllm_export.export.formats.onnx import check_graph
from mllm_export.export.formats.onnx_run import run_once
from mllm_export.export.onnx_stream import OnnxFile, OnnxTensor, open_onnx, write_onnx
from mllm_export.progress import Progress, Step, silent

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PRESETS = ("avx2", "avx512_vnni", "arm64")
"""Methods of optimum's AutoQuantizationConfig.

avx2 stores weights as u8, the others as s8. On x86 without VNNI, ONNX Runtime multiplies u8
activations by s8 weights with VPMADDUBSW, whose 16-bit sums saturate; u8 by u8 is widened to
16 bits first and summed in 32, so avx2 is exact on every x86. VNNI and ARM sum s8 exactly.
Measured on a small tower, native with VNNI against an emulated Haswell: avx2 equal to the bit,
arm64 apart by a worst-token cosine of 0.998.
Source: onnxruntime/core/mlas/lib/platform.cpp and the quantization page of its documentation.
"""

_PIECE_BYTES = 96 << 20
"""Weights quantized at a time; onnxruntime.quantization holds about five copies of them."""

_STAGE = "tower int8"


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A run of nodes between two points where one value alone is alive."""

    nodes: tuple[NodeProto, ...]
    input: str
    output: str
    tensors: tuple[OnnxTensor, ...]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)


def quantize_tower(
    float_path: Path, out_path: Path, preset: str, progress: Progress = silent
) -> None:
    """Write the INT8 twin of a float tower.

    Raises: TargetError for a preset that is not in `PRESETS`; BuildError when ONNX Runtime
    refuses the result.
    """
    if preset not in PRESETS:
        raise TargetError(unknown("vision_preset", preset, list(PRESETS)))
    source = open_onnx(float_path)
    result = _Result(source)
    pieces = _split(source, _PIECE_BYTES)
    total = sum(piece.size_bytes for piece in pieces)
    done = 0
    with tempfile.TemporaryDirectory(prefix=".int8.", dir=out_path.parent) as folder:
        for piece in pieces:
            progress(Step(stage=_STAGE, item=piece.output, done=done, total=total))
            result.add(_quantize(source, piece, preset, Path(folder)))
            done += piece.size_bytes
    skeleton = result.skeleton()
    check_graph(skeleton, result.shapes())
    write_onnx(out_path, skeleton, result.tensors.values())
    output = skeleton.graph.output[0].type.tensor_type.shape.dim
    run_once(out_path, tuple(side.dim_value for side in output))


def quantized_nodes(model: ModelProto) -> tuple[str, ...]:
    """Names of the integer products in a quantized graph, as ONNX Runtime names them."""
    return tuple(node.name for node in model.graph.node if node.op_type == "MatMulInteger")


class _Result:
    """The quantized pieces, joined."""

    def __init__(self, source: OnnxFile) -> None:
        self._source = source
        self._nodes: dict[str, NodeProto] = {}
        self._domains: dict[str, int] = {}
        self.tensors: dict[str, OnnxTensor] = {}

    def add(self, piece: OnnxFile) -> None:
        for node in piece.skeleton.graph.node:
            # Constants are in every piece that uses them, all else is in one.
            known = self._nodes.setdefault(node.output[0], node)
            assert known is node or node.op_type == "Constant", node.name
        self._domains.update({d.domain: d.version for d in piece.skeleton.opset_import})
        self.tensors.update(piece.tensors)

    def skeleton(self) -> ModelProto:
        from onnx import ModelProto

        model = ModelProto()
        model.CopyFrom(self._source.skeleton)
        graph = model.graph
        values = list(graph.value_info)
        for field in ("node", "value_info"):
            graph.ClearField(field)
        graph.node.extend(self._nodes.values())
        made = {name for node in self._nodes.values() for name in node.output}
        graph.value_info.extend(value for value in values if value.name in made)
        model.ClearField("opset_import")
        for domain, version in sorted(self._domains.items()):
            model.opset_import.add(domain=domain, version=version)
        return model

    def shapes(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        from onnx import helper

        return {
            name: (helper.np_dtype_to_tensor_dtype(tensor.dtype), tensor.shape)
            for name, tensor in self.tensors.items()
        }


def _split(source: OnnxFile, piece_bytes: int) -> list[_Piece]:
    """Cut the graph where one value alone is alive and enough weights have come together."""
    graph = source.skeleton.graph
    constants = {n.output[0]: n for n in graph.node if n.op_type == "Constant"}
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    last_use = {name: at for at, node in enumerate(nodes) for name in node.input}
    last_use[graph.output[0].name] = len(nodes)
    alive = {graph.input[0].name}
    start, entry = 0, graph.input[0].name
    pieces: list[_Piece] = []
    for at, node in enumerate(nodes):
        alive.update(node.output)
        alive = {name for name in alive if last_use.get(name, -1) > at}
        if len(alive) > 1:
            continue
        (value,) = alive
        piece = _piece(source, constants, nodes[start : at + 1], entry, value)
        if piece.size_bytes >= piece_bytes or at + 1 == len(nodes):
            pieces.append(piece)
            start, entry = at + 1, value
    return pieces


def _piece(
    source: OnnxFile,
    constants: dict[str, NodeProto],
    nodes: list[NodeProto],
    entry: str,
    value: str,
) -> _Piece:
    used = dict.fromkeys(name for node in nodes for name in node.input)
    return _Piece(
        nodes=(*(constants[name] for name in used if name in constants), *nodes),
        input=entry,
        output=value,
        tensors=tuple(source.tensors[name] for name in used if name in source.tensors),
    )


def _quantize(source: OnnxFile, piece: _Piece, preset: str, folder: Path) -> OnnxFile:
    weights = {tensor.name for tensor in piece.tensors}
    products = [n.name for n in piece.nodes if n.op_type == "MatMul" and n.input[1] in weights]
    path = folder / "piece.onnx"
    write_onnx(path, _piece_model(source, piece), piece.tensors)
    if products:
        path = _run_optimum(path, products, preset)
    quantized = open_onnx(path)
    # The files of this folder are overwritten by the next piece.
    held = {name: _held(tensor) for name, tensor in quantized.tensors.items()}
    return replace(quantized, tensors=held)


def _held(tensor: OnnxTensor) -> OnnxTensor:
    values = tensor.read().copy()
    return replace(tensor, read=lambda: values)


def _piece_model(source: OnnxFile, piece: _Piece) -> ModelProto:
    from onnx import helper

    graph = source.skeleton.graph
    types = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    return helper.make_model(
        helper.make_graph(
            piece.nodes,
            "piece",
            [types[piece.input]],
            [types[piece.output]],
            value_info=[types[o] for node in piece.nodes for o in node.output if o in types],
        ),
        opset_imports=source.skeleton.opset_import,
        ir_version=source.skeleton.ir_version,
    )


def _run_optimum(path: Path, products: list[str], preset: str) -> Path:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig
    from transformers import PretrainedConfig

    config = getattr(AutoQuantizationConfig, preset)(
        is_static=False,
        per_channel=True,
        nodes_to_quantize=products,
        operators_to_quantize=["MatMul"],
    )
    # A config of its own, else optimum looks for one beside the file and warns.
    quantizer = ORTQuantizer(path, config=PretrainedConfig())
    quantizer.quantize(config, save_dir=path.parent, file_suffix="int8")
    return path.with_name(f"{path.stem}_int8.onnx")
