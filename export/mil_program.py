"""An ML Program as read back from a saved .mlpackage.

The protobuf is read with coremltools' own classes and the weight file with its own reader; what
they say is laid out here as plain data. Source: apple/coremltools, mlmodel/format/MIL.proto, and
coremltools/converters/mil/frontend/milproto/load.py for how values are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mllm_export.errors import EngineError
from mllm_export.export.coreml_tools import coremltools
from mllm_export.weights import Shape

Array = npt.NDArray[Any]

MODEL_FILE = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS_FILE = "Data/com.apple.CoreML/weights/weight.bin"

_WIDTHS = {
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "UINT16": np.uint16,
    "INT32": np.int32,
    "UINT32": np.uint32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
_IN_BYTES = ("FLOAT16", "INT8", "UINT8", "INT16", "UINT16", "UINT32")
"""Types whose immediate values are raw bytes. Source: types.IMMEDIATE_VALUE_TYPES_IN_BYTES."""

_READERS = {
    "FLOAT16": "read_fp16_data",
    "FLOAT32": "read_float_data",
    "INT8": "read_int8_data",
    "UINT8": "read_uint8_data",
    "INT16": "read_int16_data",
    "UINT16": "read_uint16_data",
    "INT32": "read_int32_data",
    "UINT32": "read_uint32_data",
    "INT4": "read_int4_data",
    "UINT1": "read_uint1_data",
    "UINT2": "read_uint2_data",
    "UINT3": "read_uint3_data",
    "UINT4": "read_uint4_data",
    "UINT6": "read_uint6_data",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """Data inside the program: a constant, or an operation's own argument."""

    type: str
    """Element type in Core ML's words: FLOAT16, INT4, STRING, ..."""
    shape: Shape
    where: tuple[Path, int] | None
    """Weight file and offset of values that stand there."""
    immediate: Any

    def read(self) -> Any:
        """The values: an array of the type, or a str; sub-byte integers one to a byte."""
        if self.where is None:
            return self.immediate
        flat = _from_blob(self.type, *self.where)
        return flat.reshape(self.shape)


Argument = str | Value
"""The name of another operation's result, or a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One output of an operation, or an input of the program."""

    name: str
    type: str
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One line of the program."""

    type: str
    inputs: Mapping[str, tuple[Argument, ...]]
    attributes: Mapping[str, Value]
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        """The name of its first result."""
        return self.results[0].name


@dataclass(frozen=True, slots=True, kw_only=True)
class MilProgram:
    """The main function of a package."""

    path: Path
    opset: str
    """CoreML7 for iOS 17, CoreML8 for iOS 18."""
    inputs: tuple[Result, ...]
    image_inputs: tuple[str, ...]
    """Those of the inputs that take a picture (RGB, 0 to 255) in place of a tensor."""
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How often each operation occurs, constants left out, by name."""
        found: dict[str, int] = {}
        for operation in self.operations:
            if operation.type != "const":
                found[operation.type] = found.get(operation.type, 0) + 1
        return dict(sorted(found.items()))

    def result(self, name: str) -> Result:
        """Type and shape of an input or of an operation's result."""
        for one in (*self.inputs, *(r for o in self.operations for r in o.results)):
            if one.name == name:
                return one
        raise EngineError(f"{self.path}: the program has nothing named '{name}'")


def read_program(package: Path) -> MilProgram:
    """Read a saved package; weights stay in their file until asked for.

    Raises: EngineError for what is no ML Program of one function and one opset.
    """
    spec = read_spec(package)
    if spec.WhichOneof("Type") != "mlProgram":
        raise EngineError(f"{package}: not an ML Program but {spec.WhichOneof('Type')}")
    if list(spec.mlProgram.functions) != ["main"]:
        raise EngineError(f"{package}: the program has other functions than 'main'")
    main = spec.mlProgram.functions["main"]
    block = main.block_specializations[main.opset]
    images = [i.name for i in spec.description.input if i.type.WhichOneof("Type") == "imageType"]
    return MilProgram(
        path=package,
        opset=main.opset,
        inputs=tuple(_result(one) for one in main.inputs),
        image_inputs=tuple(images),
        operations=tuple(_operations(package, block)),
        outputs=tuple(block.outputs),
    )


def read_spec(package: Path) -> Any:
    """The package's protobuf message. Raises: EngineError when it is not one."""
    proto = coremltools().proto.Model_pb2.Model()
    path = package / MODEL_FILE
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as failure:
        raise EngineError(f"{package}: {failure.strerror}: {MODEL_FILE}") from failure
    # protobuf's DecodeError has no public class that all its versions share.
    except Exception as failure:
        raise EngineError(f"{path}: not a Core ML model ({failure})") from failure
    return proto


def _operations(package: Path, block: Any) -> Iterator[Operation]:
    for one in block.operations:
        if one.blocks:
            raise EngineError(f"{package}: operation '{one.type}' holds blocks of its own")
        yield Operation(
            type=one.type,
            inputs={
                name: tuple(_argument(package, binding) for binding in given.arguments)
                for name, given in one.inputs.items()
            },
            attributes={name: _value(package, v) for name, v in one.attributes.items()},
            results=tuple(_result(result) for result in one.outputs),
        )


def _argument(package: Path, binding: Any) -> Argument:
    if binding.WhichOneof("binding") == "name":
        return str(binding.name)
    return _value(package, binding.value)


def _result(one: Any) -> Result:
    kind, shape = _tensor_type(one.type)
    return Result(name=one.name, type=kind, shape=shape)


def _tensor_type(message: Any) -> tuple[str, Shape]:
    if message.WhichOneof("type") != "tensorType":
        raise EngineError(f"a value of {message.WhichOneof('type')}: only tensors are known here")
    tensor = message.tensorType
    kind = coremltools().proto.MIL_pb2.DataType.Name(tensor.dataType)
    if any(side.WhichOneof("dimension") != "constant" for side in tensor.dimensions):
        raise EngineError("a tensor without a fixed shape: only fixed shapes are known here")
    return kind, tuple(int(side.constant.size) for side in tensor.dimensions)


def _value(package: Path, message: Any) -> Value:
    kind, shape = _tensor_type(message.type)
    if message.WhichOneof("value") == "blobFileValue":
        blob = message.blobFileValue
        # "@model_path/" stands for the folder of model.mlmodel.
        inside = blob.fileName.removeprefix("@model_path/")
        where = (package / MODEL_FILE).parent / inside
        return Value(type=kind, shape=shape, where=(where, int(blob.offset)), immediate=None)
    values = _immediate(kind, shape, message.immediateValue.tensor)
    return Value(type=kind, shape=shape, where=None, immediate=values)


def _immediate(kind: str, shape: Shape, tensor: Any) -> Any:
    field = tensor.WhichOneof("value")
    stored = getattr(tensor, field).values
    if kind == "STRING":
        texts = [str(text) for text in stored]
        return texts if shape else texts[0]
    if kind not in _WIDTHS:
        raise EngineError(f"an immediate value of type {kind} is not known here")
    if kind in _IN_BYTES and field == "bytes":
        return np.frombuffer(stored, _WIDTHS[kind]).reshape(shape)
    return np.array(stored, _WIDTHS[kind]).reshape(shape)


def _from_blob(kind: str, path: Path, offset: int) -> Array:
    from coremltools.libmilstoragepython import _BlobStorageReader

    if kind not in _READERS:
        raise EngineError(f"{path}: values of type {kind} are not known here")
    try:
        found = getattr(_BlobStorageReader(str(path)), _READERS[kind])(offset)
    except RuntimeError as failure:
        raise EngineError(f"{path}: offset {offset} holds no {kind} values ({failure})") from None
    values = np.asarray(found)
    return values.view(np.float16) if kind == "FLOAT16" else values
