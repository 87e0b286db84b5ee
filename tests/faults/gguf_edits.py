"""Changes to a finished GGUF file, written anew by gguf-py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np

Bytes = Callable[[np.ndarray], np.ndarray]


def set_field(path: Path, key: str, value: object) -> None:
    """One metadata key says something else, or is there for the first time."""
    kind = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}[type(value)]
    _rewrite(path, {key: (value, gguf.GGUFValueType[kind])}, {})


def change_tensor(path: Path, name: str, change: Bytes) -> None:
    """The stored bytes of one tensor; a quantized one gives rows of bytes."""
    _rewrite(path, {}, {name: change})


def swap_tensors(path: Path, one: str, other: str) -> None:
    """Each under the other's name."""
    stored = {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    _rewrite(path, {}, {one: lambda _: stored[other], other: lambda _: stored[one]})


def add_tensor(path: Path, name: str, values: np.ndarray) -> None:
    """One more tensor, float as it is given."""
    _rewrite(path, {}, {}, {name: values})


def stored_bytes(path: Path, name: str) -> np.ndarray:
    return next(np.array(t.data) for t in gguf.GGUFReader(path).tensors if t.name == name)


def _rewrite(
    path: Path,
    fields: dict[str, tuple[object, gguf.GGUFValueType]],
    tensors: dict[str, Bytes],
    more: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    reader = gguf.GGUFReader(path)
    (architecture,) = (reader.fields[k].contents() for k in ["general.architecture"])
    made = path.with_suffix(".new")
    writer = gguf.GGUFWriter(made, str(architecture))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kind = fields.pop(name, (field.contents(), field.types[0]))
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type=inner)
    for name, (value, kind) in fields.items():
        writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if tensor.name in tensors:
            data = np.ascontiguousarray(tensors.pop(tensor.name)(data))
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    assert not tensors, tensors
    for name, values in more.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made.replace(path)
