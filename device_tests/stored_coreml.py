"""What a Core ML package holds, decoded from its own bytes and laid out as the ONNX file is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import Stored
from mllm_export.export.coreml_package import Held, read_contents
from mllm_export.export.mil_evaluator import Evaluator
from mllm_export.export.mil_program import MilProgram, Operation, Value, read_program

Array = npt.NDArray[Any]

ENDINGS = ("_quantized", "_palettized")
"""What coremltools puts behind a compressed constant's name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoremlStored:
    """A tensor of a package; decoded whole when asked, and not kept."""

    scheme: str
    shape: tuple[int, ...]
    evaluator: Evaluator
    operation: Operation | None
    """Constant, or what decodes it; None for a tensor that the converter left out."""
    fill: float
    turned: bool
    """Whether the program holds it as [out, in] where the ONNX file has [in, out]."""

    def values(self, start: int, stop: int) -> Floats:
        """Rows start..stop, decoded by the formulas of the program's own operations."""
        return np.ascontiguousarray(self._laid_out(self._decoded())[start:stop])

    def steps(self, start: int, stop: int) -> Floats:
        """The step of every value of rows start..stop; for palettes their largest value.

        k-means lets the values beyond a palette's ends be far off, whatever its gaps are.
        """
        return np.ascontiguousarray(self._laid_out(self._all_steps())[start:stop])

    def _decoded(self) -> Floats:
        if self.operation is None:
            return np.full(self.shape, self.fill, np.float32)
        values = self.evaluator.decode(self.operation)
        return np.asarray(values, np.float32)

    def _all_steps(self) -> Floats:
        assert self.operation is not None, "only compressed tensors have steps"
        whole = self._decoded().shape
        found = self._argument("scale")
        if found is None:
            palettes = self._argument("lut")
            assert palettes is not None, "what is compressed has a scale or a palette"
            found = np.abs(palettes.astype(np.float32)).max(axis=(-2, -1))
        for axis, side in enumerate(whole):
            found = np.repeat(found, side // found.shape[axis], axis)
        return np.abs(found.astype(np.float32))

    def _argument(self, name: str) -> Array | None:
        assert self.operation is not None, "only compressed tensors have arguments"
        given = self.operation.inputs.get(name, ())
        if not given:  # the older forms keep their data as attributes
            held = self.operation.attributes.get(name)
            return None if held is None else self._along_axis(np.asarray(held.read()))
        one = given[0]
        if isinstance(one, Value):
            return np.asarray(one.read())
        constant = next(o for o in self.evaluator.program.operations if o.name == one)
        return np.asarray(constant.attributes["val"].read())

    def _along_axis(self, values: Array) -> Array:
        """A vector of the older form in as many axes as the tensor has."""
        assert self.operation is not None, "only compressed tensors have arguments"
        rank = self._decoded().ndim
        axis = self.operation.attributes.get("axis")
        if values.ndim == rank or axis is None:
            return values.reshape(values.shape or (1,) * rank)
        sides = [1] * rank
        sides[int(axis.read()) % rank] = -1
        return values.reshape(sides)

    def _laid_out(self, whole: Floats) -> Floats:
        return whole.T if self.turned else whole.reshape(self.shape)


def read_coreml(path: Path) -> dict[str, Stored]:
    """Every published tensor of a package that `formats/coreml.py` wrote."""
    program = read_program(path)
    evaluator = Evaluator(program, "float32")
    operations = {o.name: o for o in program.operations if o.type.startswith("const")}
    turned = _linear_weights(program)
    return {held.name: _stored(held, evaluator, operations, turned) for held in _held(path)}


def _held(path: Path) -> tuple[Held, ...]:
    return read_contents(path).tensors


def _stored(
    held: Held, evaluator: Evaluator, operations: Mapping[str, Operation], turned: set[str]
) -> Stored:
    names = (held.constant, *(held.constant + ending for ending in ENDINGS))
    name = next((n for n in names if n in operations), "")
    operation = operations.get(name)
    return CoremlStored(
        scheme=_scheme(operation, operations),
        shape=held.shape,
        evaluator=evaluator,
        operation=operation,
        fill=held.fill,
        turned=name in turned,
    )


def _linear_weights(program: MilProgram) -> set[str]:
    """Names of what `linear` multiplies by, which it takes as [out, in]."""
    given = [o.inputs["weight"][0] for o in program.operations if o.type == "linear"]
    return {one for one in given if isinstance(one, str)}


def _scheme(operation: Operation | None, operations: Mapping[str, Operation]) -> str:
    """Read from the types and shapes that the file itself gives."""
    if operation is None:
        return "f16"
    if operation.type == "const":
        return {"FLOAT16": "f16", "FLOAT32": "f32"}[operation.attributes["val"].type]
    name = "lut" if "lut" in operation.inputs else "data"
    data = _kept(operation, name, operations)
    if name == "lut":
        return f"pal{(data.shape[-2] - 1).bit_length()}"
    if data.type == "INT8":
        return "w8"
    blocks = _kept(operation, "scale", operations).shape[1]
    return f"w{data.type.removeprefix('INT')}g{data.shape[1] // blocks}"


def _kept(operation: Operation, name: str, operations: Mapping[str, Operation]) -> Value:
    given = operation.inputs[name][0] if name in operation.inputs else None
    if given is None:  # the older form keeps its data as attributes
        return operation.attributes["quantized_data" if name == "data" else name]
    return given if isinstance(given, Value) else operations[given].attributes["val"]
