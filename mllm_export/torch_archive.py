"""PyTorch's zip files of tensors, indexed without torch: half a gigabyte and a second saved.

The pickle inside may name tensors and nothing else; any file that asks for more is left to
`torch.load`, which knows what to do with it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from mllm_export.records import record

_DTYPES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
"""Source: torch/storage.py, _dtype_to_storage_type_map."""

_BROKEN = (
    *(ArithmeticError, AttributeError, EOFError, ImportError, LookupError, OSError),
    *(pickle.UnpicklingError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile),
)
"""What an unpickler and a zip reader raise at files that are none of theirs."""

_LOCAL_HEADER_BYTES = 30
"""Behind it come the name and extra data. Source: PKWARE's APPNOTE, 4.3.7."""


@record
class ArchivedTensor:
    """Where one tensor's values lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Bytes from the beginning of the file."""
    size_bytes: int


@record
class _Storage:
    dtype: str
    itemsize: int
    record: str


def read_archive(path: Path) -> Mapping[str, Any] | None:
    """The pickled object with `ArchivedTensor` for tensors; None: a file for torch to judge."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            places = {
                entry.filename.partition("/")[2]: _place(entry, file)
                for entry in archive.infolist()
            }
            order = next((n for n in archive.namelist() if n.endswith("/byteorder")), None)
            if order is not None and archive.read(order) != b"little":
                return None
            (name,) = (n for n in archive.namelist() if n.partition("/")[2] == "data.pkl")
            with archive.open(name) as pickled:
                found = _TensorsOnly(pickled, places).load()
    except _BROKEN:
        return None
    return found if isinstance(found, Mapping) else None


def _place(entry: zipfile.ZipInfo, file: Any) -> tuple[int, int]:
    """First byte and size of what is stored."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if header[:4] != b"PK\x03\x04" or entry.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(entry.filename)
    behind = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return entry.header_offset + _LOCAL_HEADER_BYTES + behind, entry.file_size


class _TensorsOnly(pickle.Unpickler):
    """Gives a pickle three functions, none of which does anything but describe a tensor."""

    def __init__(self, file: Any, places: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(file)
        self._places = places

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils" and name in {"_rebuild_tensor_v2", "_rebuild_parameter"}:
            return self._tensor() if name == "_rebuild_tensor_v2" else _parameter()
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, (dtype, itemsize), key, _, _ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(str(kind))
        return _Storage(dtype=dtype, itemsize=itemsize, record=f"data/{key}")

    # A new function each time: what a pickle might set on one is gone with it.
    def _tensor(self) -> Callable[..., ArchivedTensor]:
        def rebuild(
            storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any
        ) -> ArchivedTensor:
            start, stored_bytes = self._places[storage.record]
            size_bytes = prod(shape) * storage.itemsize
            at = offset * storage.itemsize
            if not _is_dense(shape, strides) or min(0, *shape, at) < 0:
                raise ValueError(f"strides {strides} of {shape}")
            if at + size_bytes > stored_bytes:
                raise ValueError(f"{at + size_bytes} bytes of {stored_bytes}")
            return ArchivedTensor(
                dtype=storage.dtype, shape=tuple(shape), start=start + at, size_bytes=size_bytes
            )

        return rebuild


def _parameter() -> Callable[..., ArchivedTensor]:
    def rebuild(tensor: ArchivedTensor, *_: Any) -> ArchivedTensor:
        if not isinstance(tensor, ArchivedTensor):
            raise TypeError(type(tensor).__name__)
        return tensor

    return rebuild


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether rows follow each other; transposed and overlapping tensors are left to torch."""
    if 0 in shape and len(shape) == len(strides):
        return True
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
