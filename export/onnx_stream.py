"""ONNX files written and read a tensor at a time, so that a model need not fit in memory twice.

`onnx.save` and `onnx.load` hold the weights once as a message and once as bytes. Here the message
is kept without its weights (the skeleton), and weights pass through one by one. The bytes are
those protobuf itself would write. Source: onnx.proto; protobuf's encoding guide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mllm_export.errors import BuildError
from mllm_export.export.parts import Array
from mllm_export.weights import Shape

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import GraphProto, ModelProto, TensorProto

PROTOBUF_LIMIT_BYTES = (1 << 31) - 1
"""No protobuf message may be larger."""

_GRAPH = 7  # field of ModelProto
_INITIALIZER = 5  # field of GraphProto
_RAW_DATA = 9  # field of TensorProto
_AFTER_INITIALIZERS = ("input", "output", "value_info")
_PAGE_BYTES = 4096
_BYTES_FIELD = 2  # protobuf's wire type of strings, bytes and messages


@dataclass(frozen=True, kw_only=True)
class OnnxTensor:
    """One initializer: what it is, and how to get its values."""

    name: str
    dtype: np.dtype[np.generic]
    shape: Shape
    read: Callable[[], Array]

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A model without its initializers, and the initializers by name."""

    skeleton: ModelProto
    tensors: dict[str, OnnxTensor]


def data_path(path: Path) -> Path:
    """Where a model's values stand that are more than one message may hold."""
    return path.with_name(f"{path.name}.data")


def write_onnx(
    path: Path,
    skeleton: ModelProto,
    tensors: Iterable[OnnxTensor],
    limit_bytes: int = PROTOBUF_LIMIT_BYTES,
) -> None:
    """Write one file; weights past what a message can hold go to `<name>.data` beside it."""
    tensors = list(tensors)
    if _message_bytes(skeleton, tensors) > limit_bytes:
        _write_with_data_file(path, skeleton, tensors)
        return
    before, graph_before, graph_after, after = _pieces(skeleton)
    entries = [_entry_head(tensor) for tensor in tensors]
    graph_bytes = len(graph_before) + len(graph_after)
    graph_bytes += sum(len(h) + t.size_bytes for h, t in zip(entries, tensors, strict=True))
    with path.open("wb") as file:
        file.write(before + _tag(_GRAPH) + _varint(graph_bytes) + graph_before)
        for head, tensor in zip(entries, tensors, strict=True):
            file.write(head)
            _write_values(file, tensor)
        file.write(graph_after + after)


def open_onnx(path: Path) -> OnnxFile:
    """Read the skeleton; weights stay in the file until one is asked for.

    Raises: BuildError when the file is no ONNX model.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    data = np.memmap(path, np.uint8, "r")
    tensors: dict[str, OnnxTensor] = {}
    try:
        model = ModelProto.FromString(_without(data, 0, len(data), _GRAPH))
        for start, stop in _fields(data, 0, len(data), _GRAPH):
            model.graph.MergeFromString(_without(data, start, stop, _INITIALIZER))
            for entry in _fields(data, start, stop, _INITIALIZER):
                tensor = _stored_tensor(path, data, *entry)
                tensors[tensor.name] = tensor
    except (DecodeError, IndexError, ValueError) as failure:
        raise BuildError(f"{path}: not an ONNX model ({failure})") from failure
    return OnnxFile(skeleton=model, tensors=tensors)


def _pieces(skeleton: ModelProto) -> tuple[bytes, bytes, bytes, bytes]:
    """The model's bytes before its graph, the graph's around its initializers, the rest."""
    from onnx import GraphProto, ModelProto

    before, after = ModelProto(), ModelProto()
    before.CopyFrom(skeleton)
    before.ClearField("graph")
    after.opset_import.extend(skeleton.opset_import)
    after.metadata_props.extend(skeleton.metadata_props)
    after.functions.extend(skeleton.functions)
    for name in ("opset_import", "metadata_props", "functions"):
        before.ClearField(name)
    head, tail = GraphProto(), GraphProto()
    head.node.extend(skeleton.graph.node)
    head.name = skeleton.graph.name
    for name in _AFTER_INITIALIZERS:
        getattr(tail, name).extend(getattr(skeleton.graph, name))
    _require_no_other_fields(skeleton.graph)
    return _bytes(before), _bytes(head), _bytes(tail), _bytes(after)


def _bytes(message: Message) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def _require_no_other_fields(graph: GraphProto) -> None:
    known = {"node", "name", *_AFTER_INITIALIZERS}
    others = [field.name for field, _ in graph.ListFields() if field.name not in known]
    assert not others, f"the graph holds {others}, which this writer would lose"


def _entry_head(tensor: OnnxTensor) -> bytes:
    """What stands before an initializer's values: its tags, lengths, shape, type and name."""
    from onnx import TensorProto, helper

    proto = TensorProto(
        name=tensor.name,
        dims=tensor.shape,
        data_type=helper.np_dtype_to_tensor_dtype(tensor.dtype),
    )
    inner = _bytes(proto)
    inner += _tag(_RAW_DATA) + _varint(tensor.size_bytes)
    return _tag(_INITIALIZER) + _varint(len(inner) + tensor.size_bytes) + inner


def _write_values(file: BinaryIO, tensor: OnnxTensor) -> None:
    values = np.asarray(tensor.read(), order="C")
    assert values.dtype == tensor.dtype, f"{tensor.name}: {values.dtype}, not {tensor.dtype}"
    assert values.shape == tensor.shape, f"{tensor.name}: {values.shape}, not {tensor.shape}"
    # Bytes as an array of bytes: some dtypes (bfloat16) have no buffer interface.
    file.write(values.reshape(-1).view(np.uint8).data)


def _message_bytes(skeleton: ModelProto, tensors: list[OnnxTensor]) -> int:
    heads = sum(len(_entry_head(tensor)) + tensor.size_bytes for tensor in tensors)
    return int(skeleton.ByteSize()) + heads + 16


def _write_with_data_file(path: Path, skeleton: ModelProto, tensors: list[OnnxTensor]) -> None:
    from onnx import ModelProto, TensorProto, helper

    model = ModelProto()
    model.CopyFrom(skeleton)
    values = data_path(path)
    with values.open("wb") as file:
        for tensor in tensors:
            # Engines map the data file, and a mapping begins at a page.
            file.write(bytes(-file.tell() % _PAGE_BYTES))
            entry = model.graph.initializer.add(
                name=tensor.name,
                dims=tensor.shape,
                data_type=helper.np_dtype_to_tensor_dtype(tensor.dtype),
                data_location=TensorProto.EXTERNAL,
            )
            place = {"location": values.name, "offset": file.tell(), "length": tensor.size_bytes}
            for key, value in place.items():
                entry.external_data.add(key=key, value=str(value))
            _write_values(file, tensor)
    path.write_bytes(_bytes(model))


def _stored_tensor(path: Path, data: Array, start: int, stop: int) -> OnnxTensor:
    from onnx import TensorProto, helper

    proto = TensorProto.FromString(_without(data, start, stop, _RAW_DATA))
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(proto.data_type))
    shape = tuple(proto.dims)
    raw = next(_fields(data, start, stop, _RAW_DATA), None)

    def read() -> Array:
        if raw is None:
            return _read_elsewhere(path, proto)
        start, stop = raw
        if start == stop:
            return np.zeros(shape, dtype)
        # A mapping of its own, gone with the array: its pages count as this process's memory.
        mapped = np.memmap(path, np.uint8, "r", start, (stop - start,))
        return np.asarray(mapped.view(dtype).reshape(shape))

    return OnnxTensor(name=proto.name, dtype=dtype, shape=shape, read=read)


def _read_elsewhere(path: Path, proto: TensorProto) -> Array:
    """Values in the data file, or in the message's typed fields."""
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(proto, base_dir=str(path.parent)))


def _fields(data: Array, start: int, stop: int, number: int) -> Iterator[tuple[int, int]]:
    """Where the contents of each field `number` (a message or bytes) stand."""
    for field, wire, _, inner, end in _walk(data, start, stop):
        if field == number and wire == _BYTES_FIELD:
            yield inner, end


def _without(data: Array, start: int, stop: int, number: int) -> bytes:
    """A message's bytes less the field `number`."""
    kept = (
        data[at:end].tobytes()
        for field, _, at, _, end in _walk(data, start, stop)
        if field != number
    )
    return b"".join(kept)


def _walk(data: Array, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, start, start of contents and end of every field of one message."""
    at = start
    while at < stop:
        tag, inner = _read_varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == _BYTES_FIELD:
            length, inner = _read_varint(data, inner)
            end = inner + length
        elif wire == 0:
            _, end = _read_varint(data, inner)
        elif wire in (1, 5):
            end = inner + (8 if wire == 1 else 4)
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if end > stop:
            raise ValueError(f"a field ends at byte {end}, past {stop}; is the file cut short?")
        yield field, wire, at, inner, end
        at = end


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _BYTES_FIELD)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: Array, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = int(data[at])
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
