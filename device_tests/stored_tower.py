"""What a tower's ONNX file holds, turned back into the values that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.limit import Kind
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import Stored, taken

if TYPE_CHECKING:
    from mllm_export.export.onnx_stream import OnnxFile

Array = npt.NDArray[Any]

_FLOATS = {"float32": "f32", "float16": "f16"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxFloat:
    """An initializer in floating point."""

    shape: tuple[int, ...]
    data: Array
    scheme: str = "f32"
    factors: Floats | None = None
    """What each row is multiplied by to be the published one, where the tower was smoothed."""

    def values(self, start: int, stop: int) -> Floats:
        """Rows start..stop."""
        rows = np.array(taken(self.data, start, stop), np.float32)
        return rows if self.factors is None else _by_row(rows, self.factors[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxInt8:
    """A weight in 8 bits with a step and a zero for each output column."""

    shape: tuple[int, ...]
    data: Array
    scale: Array
    zero_point: Array
    scheme: str = "w8a8"
    factors: Floats | None = None

    def values(self, start: int, stop: int) -> Floats:
        """Rows start..stop, dequantized."""
        codes = taken(self.data, start, stop).astype(np.float32)
        codes -= self.zero_point.astype(np.float32)
        return np.asarray(codes * self.steps(start, stop), np.float32)

    def steps(self, start: int, stop: int) -> Floats:
        """The step of every value of rows start..stop."""
        rows = np.broadcast_to(self.scale, (stop - start, *self.shape[1:]))
        return rows if self.factors is None else _by_row(rows, self.factors[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxBlocks:
    """A weight in 4-bit blocks along its columns.

    Source: ONNX Runtime, ContribOperators.md, MatMulNBits: B, scales and zero_points.
    """

    shape: tuple[int, ...]
    data: Array
    """u8[columns, blocks, block / 2], the first of two values in the low half."""
    scale: Array
    zero_point: Array | None
    block: int
    scheme: str

    def values(self, start: int, stop: int) -> Floats:
        """Rows start..stop, dequantized."""
        codes = _halves(self.data).reshape(self.shape[1], -1)[:, start:stop]
        zeros = 8.0 if self.zero_point is None else self._spread(_halves(self.zero_point))
        zeros = zeros if isinstance(zeros, float) else zeros[:, start:stop]
        return np.ascontiguousarray(((codes - zeros) * self._all_steps()[:, start:stop]).T)

    def steps(self, start: int, stop: int) -> Floats:
        """The step of every value of rows start..stop."""
        return np.abs(self._all_steps()[:, start:stop]).T

    def _all_steps(self) -> Floats:
        return self._spread(self.scale.reshape(self.shape[1], -1))

    def _spread(self, one_per_block: Array) -> Floats:
        blocks = self.data.shape[1]
        return np.repeat(one_per_block[:, :blocks].astype(np.float32), self.block, axis=1)


def _by_row(rows: Floats, factors: Floats) -> Floats:
    return np.asarray(rows * factors.reshape(-1, *[1] * (rows.ndim - 1)), np.float32)


def _halves(packed: Array) -> Floats:
    """Two values of each byte along the last axis, the low half first."""
    both = np.stack([packed & 0xF, packed >> 4], axis=-1)
    return both.reshape(*packed.shape[:-1], -1).astype(np.float32)


def read_onnx(path: Path) -> dict[str, Stored]:
    """Every weight of a tower's file under its float name."""
    from mllm_export.export.onnx_stream import open_onnx
    from mllm_export.export.tower_smoothing import unsmoothed

    file = open_onnx(path)
    arrays = {name: tensor.read() for name, tensor in file.tensors.items()}
    found: dict[str, Stored] = {**_int8(file, arrays), **_blocks(file, arrays)}
    ends = ("_quantized", "_scale", "_zero_point", "_Q4", "_scales", "_zero_points")
    beside = {name + end for name in found for end in ends}
    for name, data in arrays.items():
        if name not in beside:
            scheme = _FLOATS.get(data.dtype.name, data.dtype.name)
            found[name] = OnnxFloat(shape=data.shape, data=data, scheme=scheme)
    notes = {prop.key: prop.value for prop in file.skeleton.metadata_props}
    for name, factors in unsmoothed(notes).items():
        one = found.get(name)
        if isinstance(one, OnnxFloat | OnnxInt8):
            found[name] = replace(one, factors=factors)
    return found


def _int8(file: OnnxFile, arrays: Mapping[str, Array]) -> dict[str, Stored]:
    nodes = file.skeleton.graph.node
    fixed = {name for n in nodes if n.op_type == "MatMulIntegerToFloat" for name in n.input}
    found: dict[str, Stored] = {}
    for name, data in arrays.items():
        plain = name.removesuffix("_quantized")
        if plain != name and f"{plain}_scale" in arrays and f"{plain}_zero_point" in arrays:
            found[plain] = OnnxInt8(
                shape=data.shape,
                data=data,
                scale=arrays[f"{plain}_scale"],
                zero_point=arrays[f"{plain}_zero_point"],
                scheme="w8a8-static" if name in fixed else "w8a8",
            )
    return found


def _blocks(file: OnnxFile, arrays: Mapping[str, Array]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for node in file.skeleton.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        numbers = {a.name: int(a.i) for a in node.attribute}
        plain = node.input[1].removesuffix("_Q4")
        zeros = arrays.get(f"{plain}_zero_points")
        kind = "" if zeros is None else "-asym"
        found[plain] = OnnxBlocks(
            shape=(numbers["K"], numbers["N"]),
            data=arrays[node.input[1]],
            scale=arrays[f"{plain}_scales"],
            zero_point=zeros,
            block=numbers["block_size"],
            scheme=f"w{numbers['bits']}g{numbers['block_size']}{kind}",
        )
    return found


def tower_kind(stored: Mapping[str, Stored]) -> Kind:
    """By the coarsest scheme of any weight."""
    if any(isinstance(one, OnnxBlocks) for one in stored.values()):
        return "int4"
    return "int8" if any(isinstance(one, OnnxInt8) for one in stored.values()) else "f16"
